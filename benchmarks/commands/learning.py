"""``python -m benchmarks learning``: the captured share of the personalization gain, by size of the log."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from ray_train.learners import LEARNERS
from triton_models.doors import say

ROWS = (30_000, 100_000, 200_000, 350_000, 500_000, 1_000_000, 2_000_000)
SEEDS = (101, 102, 103, 104, 105)
OTHERS = ("static", "lightgbm", "vowpal-wabbit", "vowpal-wabbit-adf")
"""Contestants besides the learners of ``fit``; obp's need an environment of their own."""
NICE = 10


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "learning",
        help="how much of the achievable personalization gain each learner captures",
        description="Fits every learner on logs of the simulated feed and values its choices against exact "
        "truth: (learned - best static) / (best request-level - best static). One JSON per cell in "
        "DIR/cells: what lies there is not run again, so an interrupted run goes on. lightgbm and "
        "vowpal-wabbit need pip install 'prl-puts[learning]'. obp-ipw and obp-nn, the Open Bandit Pipeline's "
        "policy learners, want another pandas and run in an environment of their own: python3.11 -m venv OBP "
        "&& OBP/bin/pip install sb-obp==0.5.10, then --obp-python OBP/bin/python --learner obp-ipw obp-nn.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--feed", default="boards", help="which world: homefeed, boards, boards-strong, boards-null")
    add("--rows", type=int, nargs="+", default=list(ROWS), help="sizes of the log")
    add("--seed", type=int, nargs="+", default=list(SEEDS), help="worlds and networks")
    add(
        "--learner",
        nargs="+",
        default=[*LEARNERS, *OTHERS],
        help="what to compare: learners of fit, static, lightgbm, vowpal-wabbit (--cb A --cb_type mtr), "
        "vowpal-wabbit-adf (--cb_adf, weights as features), obp-ipw, obp-nn",
    )
    add("--obp-python", type=Path, metavar="PATH", help="an interpreter that has sb-obp 0.5.10")
    add("--out", type=Path, required=True, metavar="DIR", help="folder for cells, learning.md and .html")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> None:
    """Run the cells that are missing, then write and show the table of all that lie there."""
    import torch

    from benchmarks.learning.cells import Cell, run_cell
    from benchmarks.learning.report import write_report

    os.nice(NICE)
    torch.set_num_threads(1)
    cells = [
        Cell(feed=options.feed, seed=seed, rows=rows, learner=learner)
        for rows in options.rows
        for seed in options.seed
        for learner in options.learner
    ]
    for number, cell in enumerate(cells, start=1):
        figures = run_cell(cell, options.out, obp_python=options.obp_python)
        say(
            f"{number} of {len(cells)}: {cell.feed}, seed {cell.seed}, {cell.rows:,} rows, {cell.learner}: "
            f"captured {figures['mean']:+.3f} ({figures['seconds']:.0f} s)"
        )
    text = write_report(options.out)
    say(text.rstrip())
    say(f"written: {options.out / 'learning.md'}, {options.out / 'learning.html'}")
