"""``python -m benchmarks paper``: the paper's tables and figures in the simulated feed."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from triton_models.doors import say
from triton_models.errors import BenchmarkError

SEEDS = (121, 122, 123, 124, 125)


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "paper",
        help="the paper's tables and figures in the simulated feed, beside the paper's own",
        description="For every seed a world: its log is fitted and swept, and every operating point of the "
        "sweep gets an A/B test and its exact value on new requests. Also cohorts, matched static weights, "
        "head contributions, weight ranges, engagement, feature groups in isolation, chosen weights. One "
        "process, one thread; one JSON per part in DIR/parts: what lies there is not run again, so an "
        "interrupted run goes on.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="folder for parts, paper.html, .md and .json")
    add("--seed", type=int, nargs="+", default=list(SEEDS), help="worlds; intervals over worlds need two")
    add("--requests", type=int, default=200_000, help="logged requests of a world: 2/3 train, 1/3 hold-out")
    add("--test-requests", type=int, default=200_000, help="new requests for A/B tests and truth")
    add("--points", type=int, default=25, help="operating points of the sweep")
    add("--alpha-min", type=float, default=0.04, help="first α of the sweep")
    add("--alpha-max", type=float, default=0.52, help="last α of the sweep")
    add("--learner", default="committee", help="what to fit: committee or paper")
    add("--ablation-requests", type=int, default=100_000, help="rows for every network of the ablation")
    add("--ablation-seeds", type=int, default=3, help="so many of the seeds have an ablation")
    add("--truth-requests", type=int, default=4000, help="requests that the ablation is valued on")
    add("--candidates", type=int, default=240, help="candidates per request")
    add("--users", type=int, default=20_000, help="users of a world; more traffic mostly means more of them")
    add(
        "--beside",
        type=Path,
        nargs="+",
        default=[],
        metavar="DIR",
        help="finished runs with more or fewer requests, whose correlations are shown beside",
    )
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> None:
    """Make the parts that are missing, write and show the report.

    Raises:
        BenchmarkError: impossible settings, parts of other settings in the folder, nothing to show beside.
    """
    import torch
    from pydantic import ValidationError

    from benchmarks.paper.run import run_paper
    from benchmarks.paper.settings import PaperSettings
    from triton_models.surface import describe_validation_error

    given = {name: value for name, value in vars(options).items() if name in PaperSettings.model_fields}
    try:
        settings = PaperSettings(seeds=tuple(options.seed), **given)
    except ValidationError as error:
        raise BenchmarkError(f"these settings do not work: {describe_validation_error(error)}") from error
    torch.set_num_threads(1)
    text = run_paper(settings, options.out, say, options.beside)
    say(text.rstrip())
    say(f"written: {options.out}/paper.html, paper.md, paper.json, frontiers/")
