"""``python -m benchmarks record``: what the decision log costs the event loop."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from triton_models.doors import say


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "record",
        help="what the decision log costs the event loop",
        description="Record made-up decisions on an event loop, with and without the log in turns: the time "
        "of each call, and how late the loop is woken while the log's thread writes.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--surface", type=Path, default=Path("benchmarks/surfaces/homefeed.yaml"), help="control surface")
    add("--rate", type=float, default=500.0, help="requests a second")
    add("--sample-rate", type=float, default=1.0, help="share of them that is logged")
    add("--blocks", type=int, default=10, help="blocks with the log, and as many without")
    add("--block-s", type=float, default=2.0, help="seconds of a block")
    add("--out", type=Path, default=None, help="folder for record.json and record.md")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> None:
    """Measure, show, write."""
    from benchmarks.cost.machine import SERVING_PACKAGES, describe_machine
    from benchmarks.record_cost import Plan, measure, table
    from triton_models.files import write_atomically, write_json
    from triton_models.surface import load_surface

    plan = Plan(
        rate_hz=options.rate,
        sample_rate=options.sample_rate,
        blocks=options.blocks,
        block_s=options.block_s,
    )
    surface = load_surface(options.surface)
    say(f"recording for {2 * plan.blocks * plan.block_s:.0f} s ...")
    result = measure(surface, plan)
    machine = describe_machine(packages=(*SERVING_PACKAGES, "pyarrow"), gpu=False)
    say(table(result))
    log = result["log"]
    say(f"{log['written']:,} decisions written, dropped: {log['dropped'] or 'none'}")
    say(f"{machine['cpu']}, {machine['cores']} cores, load average {machine['load_average']}")
    if options.out is not None:
        write_json(options.out / "record.json", {"machine": machine, **result})
        write_atomically(options.out / "record.md", table(result) + "\n")
        say(f"in {options.out}")
