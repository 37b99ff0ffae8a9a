"""``python -m benchmarks finer``: what ``sweep --finer`` assumes and what it could win, against the truth."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from triton_models.doors import say
from triton_models.errors import BenchmarkError


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "finer",
        help="weights between the explored ones: error of the interpolation, and what they could win",
        description="Compares the interpolated value of weight vectors between the explored ones with their "
        "exact value in the simulated feed, and the best finer choice with the best explored one.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--surface", type=Path, default=Path("benchmarks/surfaces/homefeed.yaml"), metavar="FILE")
    add("--factor", type=int, default=4, help="parts of a grid step")
    add("--requests", type=int, default=1024)
    add("--draws", type=int, default=8, help="redraws of each request's candidates")
    add("--seeds", type=int, nargs="+", default=[11, 12, 13], metavar="SEED", help="worlds")
    add("--out", type=Path, required=True, metavar="DIR", help="folder for finer.json")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> None:
    """Measure, write, show."""
    from dataclasses import asdict

    from benchmarks.cost.machine import describe_machine
    from benchmarks.finer_error import ALPHAS, measure_finer
    from triton_models.files import write_json
    from triton_models.surface import load_surface

    if min(options.factor - 1, options.requests, options.draws) < 1:
        raise BenchmarkError("factor must be at least 2, requests and draws at least 1")
    surface = load_surface(options.surface)
    if len(surface.objectives) != 2:
        raise BenchmarkError(f"α needs two objectives, the surface has {len(surface.objectives)}")
    found: dict[str, Any] = {}
    for seed in options.seeds:
        error = measure_finer(
            surface, options.factor, seed=seed, requests=options.requests, draws=options.draws
        )
        found[str(seed)] = {name: values.tolist() for name, values in asdict(error).items()}
        for m, name in enumerate(surface.objectives):
            say(
                f"world {seed}, {name}: interpolation errs by {error.rms_M[m]:.3%} (rms), at most "
                f"{error.largest_M[m]:.2%}; {error.upper_rms_M[m]:.3%} (rms) above the lowest cells"
            )
        for alpha, one, all_ in zip(ALPHAS, error.request_gain_L, error.static_gain_L, strict=True):
            say(
                f"world {seed}, α = {alpha:g}: the best finer choice is worth {one:+.3%} request by request, "
                f"{all_:+.3%} as one vector for everybody"
            )
    settings = {key: str(value) for key, value in vars(options).items() if key != "command"}
    write_json(
        options.out / "finer.json", {"machine": describe_machine(), "settings": settings, "worlds": found}
    )
    say(f"written: {options.out / 'finer.json'}")
