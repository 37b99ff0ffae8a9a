"""``python -m benchmarks estimators``: how wrong are the estimators, and do their intervals cover."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from triton_models.doors import say
from triton_models.errors import BenchmarkError

LINE_INTERVAL_S = 20.0


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "estimators",
        help="bias, RMSE and interval coverage of every estimator of lifts, against exact truth",
        description="Draws logs from a pool of requests of the simulated feed whose expected rewards are "
        "known for every action, values learned policies on each log with every estimator, and compares "
        "with the "
        "truth: bias, RMSE against Reward@HIT's, coverage of 95 %% intervals.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--surface", type=Path, default=Path("benchmarks/surfaces/homefeed.yaml"), metavar="FILE")
    add(
        "--feed", default=None, help="a world of `benchmarks learning` with its surface; default: --surface's"
    )
    add("--seed", type=int, default=201, help="of the world, its policies and the logs")
    add("--requests", type=int, default=40_000, help="of the pool")
    add("--training-rows", type=int, default=150_000, help="logged requests that the policies are fitted on")
    add("--rows", type=int, default=40_000, help="of every drawn log")
    add("--repetitions", type=int, default=200)
    add(
        "--alphas",
        type=float,
        nargs="+",
        default=[0.05, 0.15, 0.25, 0.35, 0.5, 0.65],
        help="operating points",
    )
    add("--estimator", nargs="+", default=None, metavar="NAME", help="default: all")
    add("--resamples", type=int, default=300, help="of the bootstrap, 0 for none")
    add("--processes", type=int, default=2)
    add("--out", type=Path, required=True, metavar="DIR", help="folder for estimators.json, .md and .html")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> None:
    """Draw, value, compare, write, show."""
    import numpy as np

    from benchmarks.cost.machine import describe_machine
    from benchmarks.estimator_error.pool import make_pool
    from benchmarks.estimator_error.repetitions import Plan, repeat
    from benchmarks.estimator_error.report import as_markdown, as_page, figures
    from benchmarks.feed.config import WorldConfig
    from benchmarks.feed.world import World
    from benchmarks.learning.worlds import FEEDS, SURFACES
    from ray_train.estimators_by_name import ESTIMATORS, UNBIASED
    from ray_train.estimators_smooth import ProjectionDR
    from triton_models.files import write_atomically, write_json
    from triton_models.surface import load_surface

    names = tuple(options.estimator or ESTIMATORS)
    strange = sorted(set(names) - set(ESTIMATORS))
    if strange or options.repetitions < 2 or options.rows < 100:
        raise BenchmarkError(f"unknown estimator {strange}, or fewer than 2 repetitions or 100 rows")
    if options.feed is not None and options.feed not in FEEDS:
        raise BenchmarkError(f"feed {options.feed!r}: there are {', '.join(FEEDS)}")
    feed = FEEDS.get(options.feed)
    surface = load_surface(SURFACES / feed.surface if feed else options.surface)
    if len(surface.objectives) != 2:
        raise BenchmarkError("estimators sweeps α over two objectives; this surface has another number")
    behaviour = dict(feed.settings) if feed else {}
    config = WorldConfig.model_validate({**behaviour, "seed": options.seed, "requests": options.requests})
    world = World(config, surface)
    say(f"a pool of {options.requests:,} requests, policies fitted on {options.training_rows:,} others …")
    started = time.monotonic()
    pool = make_pool(
        world,
        requests=options.requests,
        training_rows=options.training_rows,
        alphas=np.array(options.alphas),
    )
    plan = Plan(
        pool=pool,
        surface=surface,
        estimators=names,
        bootstrapped=tuple(
            name for name in names if options.resamples and (name in UNBIASED or name == ProjectionDR.name)
        ),
        resamples=max(options.resamples, 2),
        rows=options.rows,
        seed=options.seed,
    )
    say(f"{options.repetitions} logs of about {options.rows:,} rows, {len(names)} estimators …")
    found = repeat(plan, options.repetitions, processes=options.processes, progress=_Lines())
    rows = figures(found, pool.truth_PM)
    text = as_markdown(rows)
    settings = {name: str(value) for name, value in vars(options).items() if name != "command"}
    data = {"machine": describe_machine(), "settings": settings, "estimators": rows}
    write_json(options.out / "estimators.json", data)
    write_atomically(options.out / "estimators.md", text)
    title = (
        f"Estimators of lifts: {surface.name}, {options.repetitions} logs of {options.rows:,} rows, "
        f"seed {options.seed}"
    )
    write_atomically(options.out / "estimators.html", as_page(rows, title))
    say(text.rstrip())
    say(f"{time.monotonic() - started:.0f} s; written: {options.out / 'estimators.json'}, .md, .html")


class _Lines:
    """An occasional line of progress."""

    def __init__(self) -> None:
        self._shown = time.monotonic()

    def __call__(self, done: int) -> None:
        if time.monotonic() - self._shown > LINE_INTERVAL_S:
            self._shown = time.monotonic()
            sys.stderr.write(f"estimators: {done} repetitions\n")
