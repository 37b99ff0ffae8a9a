"""``python -m ray_train sweep``: the frontier of a run, as JSON for programs and a page for people."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from ray_train.commands.validate import add_check_options, check_options
from triton_models.errors import ConfigurationError

if TYPE_CHECKING:
    from ray_train.logs import LogFiles
    from ray_train.reading import Unit, Window
    from ray_train.scoring import Progress
    from ray_train.served_network import ServedNetwork
    from ray_train.sweep_settings import SweepSettings
    from triton_models.network import ValueNetwork
    from triton_models.runs import Run

LINE_INTERVAL_S = 10.0


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "sweep",
        help="value every operating point of a run on logs, and write its frontier",
        description="One scoring pass over the hold-out rows, then values, lifts against production and "
        "intervals for every scalarization, the empirical Pareto frontier and the candidates for a test. "
        "Writes RUN/frontier.json and RUN/frontier.html.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("logs", metavar="LOGS", help="folder of Parquet files, local or a pyarrow URI")
    add("--run", required=True, metavar="RUN", help="folder of a finished run")
    add(
        "--estimator",
        default="projection_dr",
        metavar="NAME",
        help="projection_dr, kernel_dr, dr, dros, switch_dr, dm (biased), ips, snips, or reward_at_hit "
        "(uniform logging only)",
    )
    add(
        "--reward-model",
        default="ridge",
        choices=("ridge", "network"),
        help="for estimators that have one: cross-fitted on these rows, or the run's own network",
    )
    add("--by", choices=("cohort",), help="also every point for every cohort")
    add("--points", type=int, default=25, help="values of α; about that many λ for more than two objectives")
    add(
        "--finer",
        type=int,
        default=1,
        metavar="FACTOR",
        help="also value choices between the explored weights, every grid step divided by this; such points "
        "are marked as extrapolated and never candidates",
    )
    add("--alpha-min", type=float, default=0.0, help="smallest α of the sweep, λ = (1-α, α)")
    add("--alpha-max", type=float, default=1.0, help="largest α of the sweep")
    add("--bootstrap", type=int, default=1000, metavar="B", help="resamples; 0 for normal intervals")
    add("--confidence", type=float, default=0.95, help="confidence of each interval")
    add("--seed", type=int, default=0, help="seed of the bootstrap")
    add(
        "--production",
        default="smooth",
        choices=("smooth", "mixture", "nearest"),
        help="how production is valued: interpolated, as a mixture of grid points, by the nearest one",
    )
    add("--split", choices=("holdout", "all"), default="holdout", help="rows: the run's hold-out, or all")
    add("--batch-size", type=int, default=8192, metavar="ROWS", help="rows that one worker holds at once")
    add(
        "--triton",
        metavar="HOST:PORT",
        help="score with the run's model in this running Triton, beside live traffic",
    )
    add("--triton-share", type=float, default=0.5, help="most of the time that scoring may keep it busy")
    add("--ray-address", metavar="ADDRESS", help="Ray cluster; default: RAY_ADDRESS, else a local one")
    add_check_options(parser)
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> None:
    """Score, value, write, show."""
    from rich.console import Console

    from ray_train.cluster import joined_ray
    from ray_train.estimators import logging_is_uniform
    from ray_train.finer import finer_grid
    from ray_train.frontier_page import PAGE, render_page
    from ray_train.frontier_table import print_candidates
    from ray_train.scoring import ScoringTask, score_log
    from ray_train.sweep import build_frontier
    from triton_models.files import write_atomically
    from triton_models.frontier import FRONTIER, RunReference, write_frontier
    from triton_models.frontier import Window as FrontierWindow
    from triton_models.runs import load_run

    settings = _settings(options)
    share, now = check_options(options)
    fitted = load_run(options.run)
    surface, network = fitted.surface, _network(options, fitted)
    scalarization_PM = settings.scalarizations(surface)
    files, units, window = _open_logs(options, fitted, now)
    task = ScoringTask(
        surface=surface,
        files=files,
        window=window,
        scalarization_PM=scalarization_PM,
        now=now,
        slice_rows=options.batch_size,
        features=settings.needs_features,
        finer=finer_grid(surface, settings.finer) if settings.finer > 1 else None,
    )
    rows = sum(unit.rows for unit in units if unit.may_overlap(window))
    with joined_ray(options.ray_address), _progress(rows) as progress:
        scored = score_log(task, units, network, max_bad_share=share, progress=progress)
    console = Console()
    uniform = logging_is_uniform(scored.rows.propensity_N, surface.num_actions)
    console.print(
        f"scored {len(scored.rows):,} rows for {len(scalarization_PM)} operating points "
        f"({scored.rejected:,} bad rows left out, logging {'uniform' if uniform else 'not uniform'}); "
        f"valuing with {settings.resamples} resamples",
        highlight=False,
    )
    frontier = build_frontier(
        surface=surface,
        run=RunReference(
            run_id=fitted.manifest.run_id,
            surface_fingerprint=surface.fingerprint,
            code_version=fitted.manifest.code_version,
        ),
        window=FrontierWindow(
            start=window[0].isoformat(),
            end=window[1].isoformat(),
            split=options.split,
            rows=len(scored.rows),
            rows_rejected=scored.rejected,
            logs=files.source,
        ),
        scored=scored,
        settings=settings,
    )
    page = render_page(frontier)
    (fitted.path / PAGE).unlink(missing_ok=True)  # never the page of an earlier sweep beside this frontier
    write_frontier(fitted.path / FRONTIER, frontier)
    write_atomically(fitted.path / PAGE, page)  # last: where there is a page, the sweep is whole
    print_candidates(console, frontier)
    for name in (FRONTIER, PAGE):
        console.print(f"written: {fitted.path / name}", soft_wrap=True, highlight=False)


def _network(options: argparse.Namespace, fitted: Run) -> ValueNetwork | ServedNetwork:
    """The run's network, or the same in a running server.

    Raises:
        ConfigurationError: an impossible share.
        UpstreamError: the server cannot be asked, or serves something else.
    """
    from ray_train.served_network import ServedNetwork

    if options.triton is None:
        return fitted.load_network()
    if not 0 < options.triton_share <= 1:
        raise ConfigurationError(f"--triton-share must lie in (0, 1], got {options.triton_share}")
    served = ServedNetwork(options.triton, len(fitted.surface.objectives), share=options.triton_share)
    served.require_run(fitted)
    return served


def _settings(options: argparse.Namespace) -> SweepSettings:
    from pydantic import ValidationError

    from ray_train.sweep_settings import SweepSettings
    from triton_models.surface import describe_validation_error

    if options.batch_size < 1:
        raise ConfigurationError(f"--batch-size must be at least 1, got {options.batch_size}")
    try:
        return SweepSettings(
            estimator=options.estimator,
            reward_model=options.reward_model,
            by_cohort=options.by == "cohort",
            points=options.points,
            alpha_min=options.alpha_min,
            alpha_max=options.alpha_max,
            resamples=options.bootstrap,
            confidence=options.confidence,
            seed=options.seed,
            production=options.production,
            finer=options.finer,
        )
    except ValidationError as error:
        raise ConfigurationError(f"sweep: {describe_validation_error(error)}") from error


def _open_logs(
    options: argparse.Namespace, fitted: Run, now: datetime
) -> tuple[LogFiles, tuple[Unit, ...], Window]:
    """The log's files and row groups, and the window to evaluate."""
    from ray_train.logs import discover_files, parse_instant
    from ray_train.reading import list_units, time_range

    files = discover_files(options.logs)
    units = list_units(fitted.surface, files)
    if options.split == "holdout":
        start, end = fitted.manifest.data.holdout_window
        return files, units, (parse_instant(start), parse_instant(end))
    first, last = time_range(files, units, now)
    return files, units, (first, last + timedelta(microseconds=1))


@contextmanager
def _progress(total: int) -> Iterator[Progress]:
    """A bar on a terminal, an occasional line elsewhere; ``total`` is an upper bound."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("scoring"), BarColumn(), MofNCompleteColumn(), TextColumn("rows"))
    shown = time.monotonic()
    with Bar(*columns, TimeRemainingColumn(), disable=not sys.stderr.isatty(), transient=True) as bar:
        task = bar.add_task("scoring", total=total)

        def report(done: int) -> None:
            nonlocal shown
            bar.update(task, completed=done)
            if bar.disable and time.monotonic() - shown > LINE_INTERVAL_S:
                shown = time.monotonic()
                sys.stderr.write(f"scoring: {done:,} of at most {total:,} rows\n")

        yield report
