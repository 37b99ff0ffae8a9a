"""``python -m ray_train validate``: is this log usable, and what is wrong with it."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime

from triton_models.errors import ConfigurationError


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "validate",
        help="check exploration logs against a control surface",
        description="Check every row of a log, count bad rows by reason, and say what the log holds. "
        "Ends with code 2 if the schema does not fit or too many rows are bad.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("logs", metavar="LOGS", help="folder of Parquet files, local or a pyarrow URI")
    parser.add_argument("--surface", required=True, metavar="FILE", help="the control surface (YAML)")
    parser.add_argument("--quarantine", metavar="DIR", help="new folder for the bad rows and their reasons")
    parser.add_argument(
        "--run",
        metavar="RUN",
        help="a finished run: also say whether later rows of LOGS differ from those it was trained on",
    )
    add_check_options(parser)
    parser.set_defaults(command=run)


def add_check_options(parser: argparse.ArgumentParser) -> None:
    """Options of the row checks, which validate and fit share."""
    parser.add_argument(
        "--max-bad-share", type=float, default=0.01, metavar="SHARE", help="stop if more of the rows are bad"
    )
    parser.add_argument(
        "--now",
        metavar="ISO",
        help="the instant after which timestamps are in the future; default: the clock",
    )


def check_options(options: argparse.Namespace) -> tuple[float, datetime]:
    """The accepted share of bad rows, and now.

    Raises:
        ConfigurationError: the share is no share.
        LogError: now is no instant.
    """
    from ray_train.logs import parse_instant

    if not 0 <= options.max_bad_share <= 1:
        raise ConfigurationError(f"--max-bad-share must lie in [0, 1], got {options.max_bad_share}")
    return options.max_bad_share, parse_instant(options.now) if options.now else datetime.now(UTC)


def run(options: argparse.Namespace) -> None:
    """Check, report, quarantine; raise if the log must not be used."""
    from rich.console import Console

    from ray_train.logs import discover_files
    from ray_train.planning import examine
    from ray_train.progress import following
    from ray_train.quarantine import write_quarantine
    from ray_train.reading import list_units
    from ray_train.summary import print_summary
    from triton_models.surface import load_surface

    share, now = check_options(options)
    surface = load_surface(options.surface)
    files = discover_files(options.logs)
    units = list_units(surface, files)
    report = examine(surface, files, units, now=now, mapper=following("checking", "rows"))
    console = Console()
    print_summary(console, surface, files, report)
    if options.quarantine and report.bad:
        written = write_quarantine(surface, files, report, options.quarantine, now)
        console.print(f"quarantine: {report.bad} rows in {written}", soft_wrap=True, highlight=False)
    report.refuse_if_bad(files.source, share)
    if options.run:
        from ray_train.drift_scan import drift_since
        from triton_models.runs import load_run

        fitted = load_run(options.run)
        surface.require_same(fitted.surface, this=options.surface, that=options.run)
        drift = drift_since(fitted, files, units, now, now)
        level = "warning: " if drift.invalidates else ""
        console.print(
            f"{level}drift since run {fitted.manifest.run_id}: {drift.sentence()}",
            soft_wrap=True,
            markup=False,
            highlight=False,
        )
