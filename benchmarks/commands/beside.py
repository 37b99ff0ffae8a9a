"""``python -m benchmarks beside``: what live requests notice of a log that is scored through their server."""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from triton_models.doors import say


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "beside",
        help="what live requests notice of a log scored through their server",
        description="Serve a run, keep live requests coming, and score its logged states through the same "
        "server: not at all, paced as sweep --triton does, and greedily, in turns.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="a fitted or distilled run")
    add("--out", type=Path, required=True, help="folder for beside.json and beside.md")
    add("--rate", type=float, default=50.0, help="live requests a second")
    add("--turns", type=int, default=12, help="turns of every mode")
    add("--turn-s", type=float, default=3.0, help="seconds of a turn")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> None:
    """Export, serve, measure, write, show."""
    from benchmarks.beside import MODES, check, measure, summarize, table
    from benchmarks.cost.machine import describe_machine
    from triton_models.export import export_run
    from triton_models.files import write_atomically, write_json
    from triton_models.runs import load_run

    check(rate=options.rate, turns=options.turns, turn_s=options.turn_s)
    fitted = load_run(options.run)
    minutes = options.turns * len(MODES) * (options.turn_s + 0.5) / 60
    say(f"exporting {options.run}; then {options.turns} turns of {', '.join(MODES)}: {minutes:.1f} minutes")
    with tempfile.TemporaryDirectory() as folder:
        export_run(options.run, folder)
        turns = measure(fitted, Path(folder), rate=options.rate, turns=options.turns, turn_s=options.turn_s)
    summaries = summarize(turns)
    written = {
        "machine": describe_machine(),
        "rate": options.rate,
        "turns": [asdict(turn) for turn in turns],
        "summary": [asdict(one) for one in summaries],
    }
    write_json(options.out / "beside.json", written)
    write_atomically(options.out / "beside.md", table(summaries))
    say(table(summaries).rstrip())
    say(f"written: {options.out / 'beside.json'}, {options.out / 'beside.md'}")
