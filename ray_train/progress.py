"""Progress of a pass over a log: a bar on a terminal, an occasional line elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ray_train.checks import UnitReport
from ray_train.planning import Check, Mapper, in_threads
from ray_train.reading import Unit

LINE_INTERVAL_S = 10.0


def following(what: str, noun: str, mapper: Mapper = in_threads) -> Mapper:
    """A mapper that shows how many rows its reports have covered."""

    def mapped(check: Check, units: Sequence[Unit]) -> Iterator[UnitReport]:
        total, done = sum(unit.rows for unit in units), 0
        with counting(what, noun) as progress:
            for report in mapper(check, units):
                done += report.unit.rows
                progress(done, total)
                yield report

    return mapped


@contextmanager
def counting(what: str, noun: str) -> Iterator[Callable[[int, int], None]]:
    """Shows how many of how many are done, as it is told."""
    shown = time.monotonic()
    bar = Progress(
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(noun),
        TimeRemainingColumn(),
        disable=not sys.stderr.isatty(),
        transient=True,
    )
    with bar:
        task = bar.add_task(what, total=None)

        def report(done: int, total: int) -> None:
            nonlocal shown
            bar.update(task, completed=done, total=total)
            if bar.disable and time.monotonic() - shown > LINE_INTERVAL_S:
                shown = time.monotonic()
                sys.stderr.write(f"{what}: {done:,} of {total:,} {noun}\n")

        yield report
