"""The whole log examined, before anything is read from it for good.

``examine`` runs :func:`ray_train.checks.check_unit` over all units, in threads here or on a Ray cluster by
another ``mapper``; nothing of a log is learned from before every row of the window was looked at.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime

import pyarrow as pa

from ray_train import columns
from ray_train.checks import EXAMPLES, Example, LogReport, UnitReport, check_unit, summarize
from ray_train.logs import LogFiles
from ray_train.reading import Unit, read_slices
from ray_train.rows import Reason
from triton_models.surface import Surface

Check = Callable[[Unit], UnitReport]
Mapper = Callable[[Check, Sequence[Unit]], Iterable[UnitReport]]


def in_threads(check: Check, units: Sequence[Unit]) -> Iterator[UnitReport]:
    """Check units in threads, in order, with a bounded number of reports waiting."""
    threads = max(1, min(os.cpu_count() or 1, 16))
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[UnitReport]] = deque()
        try:
            for unit in units:
                waiting.append(pool.submit(check, unit))
                if len(waiting) > 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def examine(
    surface: Surface,
    files: LogFiles,
    units: Sequence[Unit],
    *,
    now: datetime,
    edges: Sequence[datetime] = (),
    mapper: Mapper = in_threads,
) -> LogReport:
    """Check all units and find duplicates across them; ``edges`` cut time into segments to count.

    Raises:
        LogError: a file is damaged.
    """

    def check(unit: Unit) -> UnitReport:
        return check_unit(surface, files, unit, now, edges)

    report = summarize(surface, mapper(check, units), segments=len(edges) + 1)
    if len(report.examples) < EXAMPLES and report.duplicates:
        more = _duplicate_examples(files, report, EXAMPLES - len(report.examples))
        report = replace(report, examples=(*report.examples, *more))
    return report


def _duplicate_examples(files: LogFiles, report: LogReport, most: int) -> list[Example]:
    examples: list[Example] = []
    for unit in report.bad_units:
        rows = report.duplicates.get((unit.path, unit.row_group))
        if rows is None:
            continue
        for offset, table in read_slices(files, unit, ["request_id"]):
            inside = rows[(rows >= offset) & (rows < offset + table.num_rows)] - offset
            ids = columns.strings(columns.column(table, "request_id")).take(pa.array(inside[:most]))
            examples += [
                Example(request_id=name, path=unit.path, reason=Reason.DUPLICATE_ID)
                for name in ids.to_pylist()
            ]
            if len(examples) >= most:
                return examples[:most]
    return examples
