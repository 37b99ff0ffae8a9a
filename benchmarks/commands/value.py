"""``python -m benchmarks value``: what runs' policies are really worth in the simulated feed."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from triton_models.doors import say
from triton_models.errors import BenchmarkError


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "value",
        help="what fitted runs are really worth in the simulated feed, and whether they differ",
        description="Exact values of runs' policies on new requests of the simulated feed, their share of "
        "the achievable gain, and paired differences from the first run with intervals.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("logs", type=Path, metavar="LOGS", help="folder written by simulate: the world to value in")
    add("--run", type=Path, nargs="+", required=True, metavar="RUN", help="runs; the first is compared with")
    add("--requests", type=int, default=4000, help="new requests, after the log")
    add("--draws", type=int, default=16, help="redraws of the candidates per request, even")
    add("--out", type=Path, required=True, metavar="DIR", help="folder for value.json and value.md")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> None:
    """Value, write, show."""
    import numpy as np

    from benchmarks.cost.machine import describe_machine
    from benchmarks.feed.truth import find_truth
    from benchmarks.feed.world import load_world
    from benchmarks.policy_value import as_markdown, chosen_actions, worth_of
    from triton_models.files import write_atomically, write_json
    from triton_models.runs import load_run

    world = load_world(options.logs)
    runs = [load_run(path) for path in options.run]
    for one in runs:
        world.surface.require_same(one.surface, this=str(options.logs), that=str(one.path))
    if len(world.surface.objectives) != 2:
        raise BenchmarkError("value sweeps α over two objectives; this world has another number")
    first = world.config.requests
    say(f"valuing every action at {options.requests:,} new requests, {options.draws} draws each …")
    truth = find_truth(world, first, options.requests, draws=options.draws)
    state = world.requests(first, options.requests).state_tensors(world.surface)
    alpha_P = np.linspace(0.1, 0.6, 6)
    scalarization_PM = np.stack([1 - alpha_P, alpha_P], axis=1)
    chosen = [chosen_actions(one, state, scalarization_PM) for one in runs]
    worths = worth_of(truth, [one.manifest.run_id for one in runs], chosen, scalarization_PM)
    text = as_markdown(worths, scalarization_PM)
    plain = [
        {
            name: value.tolist() if isinstance(value, np.ndarray) else value
            for name, value in asdict(worth).items()
        }
        for worth in worths
    ]
    write_json(options.out / "value.json", {"machine": describe_machine(), "runs": plain})
    write_atomically(options.out / "value.md", text)
    say(text.rstrip())
    say(f"written: {options.out / 'value.json'}, {options.out / 'value.md'}")
