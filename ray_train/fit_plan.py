"""What ``fit`` reads: the log, split by time and checked whole, before anything is learned from it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from ray_train.checks import LogReport
from ray_train.logs import LogFiles, Split, discover_files, split_by_time
from ray_train.planning import Mapper, examine
from ray_train.reading import CleanReader, Unit, Window, list_units, time_range
from ray_train.settings import FitSettings
from triton_models.errors import LogError
from triton_models.surface import Surface


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The log, split and checked."""

    files: LogFiles
    units: tuple[Unit, ...]
    split: Split
    selection_start: datetime
    report: LogReport
    now: datetime

    @property
    def rows_train(self) -> int:
        """Good rows that gradients come from, before ``max_rows``."""
        return self.report.segments[1]

    @property
    def rows_selection(self) -> int:
        """Good rows that choose the epoch."""
        return self.report.segments[2]

    @property
    def rows_holdout(self) -> int:
        """Good rows of the hold-out."""
        return self.report.segments[3]

    def reader(self, surface: Surface, start: datetime, end: datetime) -> CleanReader:
        """Reads the good rows of one window."""
        window: Window = (start, end)
        return CleanReader(
            surface=surface,
            files=self.files,
            window=window,
            now=self.now,
            duplicates=self.report.duplicates,
        )


def make_plan(
    surface: Surface, logs: str | Path, settings: FitSettings, *, now: datetime, mapper: Mapper
) -> Plan:
    """Split the log by time and check every row of the windows.

    Raises:
        LogError: the log cannot be read, does not fit, has too many bad rows, or too few good ones.
    """
    files = discover_files(logs)
    units = list_units(surface, files)
    first, last = time_range(files, units, now)
    split = split_by_time(first, last, train_days=settings.train_days, holdout_days=settings.holdout_days)
    length = (split.holdout_start - split.train_start) * settings.selection_share
    selection_start = split.holdout_start - max(length, timedelta(microseconds=1))
    inside = tuple(unit for unit in units if unit.may_overlap((split.train_start, split.holdout_end)))
    edges = (split.train_start, selection_start, split.holdout_start, split.holdout_end)
    report = examine(surface, files, inside, now=now, edges=edges, mapper=mapper)
    report.refuse_if_bad(files.source, settings.max_bad_share)
    plan = Plan(
        files=files, units=inside, split=split, selection_start=selection_start, report=report, now=now
    )
    for name, rows in (
        ("training", plan.rows_train),
        ("selection", plan.rows_selection),
        ("hold-out", plan.rows_holdout),
    ):
        if rows < 2 * settings.workers:
            raise LogError(
                f"{files.source}: only {rows} good rows in the {name} window; the log needs more rows, or "
                "other --train-days and --holdout-days"
            )
    return plan
