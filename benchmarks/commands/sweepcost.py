"""``python -m benchmarks sweepcost``: what 25 operating points cost against one scoring pass (P7)."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from triton_models.doors import say
from triton_models.errors import BenchmarkError


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "sweepcost",
        help="cost of a sweep of 25 points against one scoring pass",
        description="Times the scoring of states by the paper's network for one point and for many, and the "
        "valuing of as many rows as asked for with every named estimator. Processor time of one thread, so "
        "that a busy machine disturbs it little; reading the log is in neither.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--surface", type=Path, default=Path("benchmarks/surfaces/homefeed.yaml"), metavar="FILE")
    add("--rows", type=int, default=1_000_000, help="rows that are valued")
    add("--users", type=int, default=100_000, help="users that they belong to")
    add("--points", type=int, default=25)
    add("--turns", type=int, default=5, help="of 4,096 states each, one point and all points in turn")
    add("--estimator", nargs="+", default=["snips", "projection_dr"], metavar="NAME")
    add("--out", type=Path, required=True, metavar="DIR", help="folder for sweepcost.json")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> None:
    """Measure, write, show."""
    from benchmarks.cost.machine import describe_machine
    from benchmarks.sweep_cost import measure_scoring, measure_valuing
    from triton_models.files import write_json
    from triton_models.surface import load_surface

    if min(options.rows, options.users, options.turns) < 1 or options.points < 2:
        raise BenchmarkError("rows, users and turns must be at least 1, and points at least 2")
    surface = load_surface(options.surface)
    say(f"scoring states for 1 and for {options.points} points …")
    scoring = measure_scoring(surface, options.points, options.turns)
    say(
        f"one scoring pass {scoring.one_us:.1f} µs a row; {options.points} points {scoring.many_us:.1f}; "
        f"with what a model of the reward may know {scoring.features_us:.1f}"
    )
    found: dict[str, Any] = {}
    for name in options.estimator:
        valued = measure_valuing(surface, name, options.rows, options.users, options.points)
        pass_us = scoring.features_us if valued.needs_features else scoring.many_us
        ratio = (max(pass_us, scoring.one_us) + valued.us_per_row) / scoring.one_us
        found[name] = {
            "valuing_us_per_row": valued.us_per_row,
            "ratio": ratio,
            "peak_gb": valued.peak_gb,
        }
        say(
            f"{name}: valuing {options.rows:,} rows {valued.us_per_row:.1f} µs a row, the whole sweep "
            f"{ratio:.2f} × one scoring pass, peak memory {valued.peak_gb:.2f} GB"
        )
    settings = {key: str(value) for key, value in vars(options).items() if key != "command"}
    data = {
        "machine": describe_machine(),
        "settings": settings,
        "scoring_us_per_row": {
            "one": scoring.one_us,
            "many": scoring.many_us,
            "features": scoring.features_us,
        },
        "estimators": found,
    }
    write_json(options.out / "sweepcost.json", data)
    say(f"written: {options.out / 'sweepcost.json'}")
