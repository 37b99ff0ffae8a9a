"""``python -m benchmarks simulate``: exploration logs of the simulated feed."""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from triton_models.errors import SimulationError

DEFAULT_SURFACE = Path(__file__).parents[1] / "surfaces" / "homefeed.yaml"
DEFAULT_END = "2026-01-22T00:00:00+00:00"


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "simulate",
        help="simulate exploration logs of a feed in which the truth is known",
        description="Simulate a feed that explores the weight grid uniformly, and write its exploration "
        "log as Parquet. The rows depend on the seed and the sizes only, not on the machine's cores.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--requests", type=int, required=True, help="logged requests")
    parser.add_argument("--out", type=Path, required=True, metavar="LOGS", help="new folder for the log")
    parser.add_argument("--days", type=float, default=21.0, help="days the requests are spread over")
    parser.add_argument("--end", default=DEFAULT_END, metavar="ISO", help="end of the last day (UTC)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the world")
    parser.add_argument("--surface", type=Path, default=DEFAULT_SURFACE, metavar="FILE", help="YAML file")
    parser.add_argument("--candidates", type=int, default=240, help="candidates per request")
    parser.add_argument("--parallelism", type=int, default=None, help="tasks at a time; default: the cores")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> None:
    """Simulate, and say how fast."""
    from benchmarks.feed.simulation import simulate
    from benchmarks.feed.world import World
    from triton_models.surface import load_surface

    if options.parallelism is not None and options.parallelism < 1:
        raise SimulationError(f"--parallelism must be at least 1, got {options.parallelism}")
    surface = load_surface(options.surface)
    world = World(world_config(options), surface)
    figures = simulate(world, options.out, parallelism=options.parallelism)
    sys.stdout.write(
        f"{figures.rows:,} requests with {options.candidates} candidates in {figures.write_s:.1f} s: "
        f"{figures.rows_per_s:,.0f} rows/s on {figures.parallelism} tasks "
        f"({figures.rows_per_s_with_start:,.0f} rows/s with Ray's start, {figures.total_s:.1f} s); "
        f"{figures.core_us_per_row:.0f} µs of one core a row\n"
        f"logs: {options.out} ({figures.files} files, {figures.size_bytes / 1e6:,.0f} MB)\n"
    )


def world_config(options: argparse.Namespace) -> Any:
    """The world's configuration from the command line.

    Raises:
        SimulationError: a number that no world can have.
    """
    from pydantic import ValidationError

    from benchmarks.feed.config import WorldConfig
    from triton_models.surface import describe_validation_error

    try:
        end = datetime.fromisoformat(options.end)
    except ValueError as error:
        raise SimulationError(f"--end {options.end!r} is not an ISO 8601 instant") from error
    try:
        return WorldConfig(
            seed=options.seed,
            requests=options.requests,
            days=options.days,
            end=end.replace(tzinfo=UTC) if end.tzinfo is None else end.astimezone(UTC),
            candidates=options.candidates,
            k=min(25, max(options.candidates, 1)),
        )
    except ValidationError as error:
        raise SimulationError(f"cannot simulate this: {describe_validation_error(error)}") from error
