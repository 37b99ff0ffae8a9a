"""``python -m benchmarks loop``: one complete turn, from explored traffic to the test of the next policy."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "loop",
        help="one complete turn of the loop, through the real sidecar",
        description="Send simulated traffic through the real sidecar with exploration on; join its decisions "
        "with the simulated engagement; fit, sweep and export; roll the network out into the running Triton; "
        "apply an operating point by the policy API; test it against the production weights in new traffic; "
        "and show the measured lifts beside the predicted ones.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, help="new folder for everything it makes")
    add("--requests", type=int, default=60_000, help="requests to explore with")
    add("--test-requests", type=int, default=60_000, help="requests of the A/B test")
    add("--exploration", type=float, default=0.98, help="share of the requests that explores")
    add("--route", choices=("weights", "rank"), default="weights", help="what callers ask for")
    add("--epochs", type=int, default=6, help="training epochs")
    add("--workers", type=int, default=1, help="training workers")
    add("--callers", type=int, default=8, help="connections to the sidecar")
    add(
        "--operating-point",
        default=None,
        metavar="LABEL",
        help="candidate to test; default: the recommended one, else the knee",
    )
    add("--estimator", default=None, metavar="NAME", help="of the sweep; default: its own")
    add("--budget-ms", type=float, default=50.0, help="wait for the value network, generous on purpose")
    add("--seed", type=int, default=1, help="of the simulated feed")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> None:
    """Turn once, write, show.

    Raises:
        PutsError: a stage failed.
    """
    from rich.console import Console

    from benchmarks.loop.report import as_json, as_markdown
    from benchmarks.loop.settings import LoopSettings
    from benchmarks.loop.turn import Loop
    from triton_models.files import write_atomically, write_json

    settings = LoopSettings(
        out=options.out.resolve(),
        requests=options.requests,
        test_requests=options.test_requests,
        exploration=options.exploration,
        route=options.route,
        epochs=options.epochs,
        workers=options.workers,
        callers=options.callers,
        operating_point=options.operating_point,
        estimator=options.estimator,
        budget_ms=options.budget_ms,
        seed=options.seed,
    )
    console = Console()
    turn = Loop(settings, console).turn()
    text = as_markdown(turn)
    write_atomically(settings.out / "turn.md", text)
    write_json(settings.out / "turn.json", as_json(turn))
    console.print()
    console.print(text, markup=False, highlight=False, soft_wrap=True)
    console.print(
        f"written: {settings.out}/turn.json, turn.md, experiment/experiment.html, run/frontier.html",
        soft_wrap=True,
    )
