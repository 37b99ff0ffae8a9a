"""Reading a log in bounded pieces: row groups are the units of work, slices of them the units of memory.

A log of any size is read by many workers at once, each holding one slice. Row groups whose statistics
lie outside the time window are never opened (push-down).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from ray_train import columns
from ray_train.logs import DAMAGE, LogFiles, as_datetime, check_schema, log_schema, unreadable
from ray_train.rows import bad_rows
from triton_models.errors import LogError
from triton_models.surface import Surface

SLICE_ROWS = 16_384
"""Rows held at once by one reader."""

READERS = 8
"""Threads that open files at once; opening is waiting, on a remote filesystem above all."""

Window = tuple[datetime, datetime]
"""Start (inclusive) and end (exclusive), in UTC."""


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One row group of one file."""

    path: str
    row_group: int
    rows: int
    first: datetime | None
    """Earliest timestamp by the file's statistics, None if it has none."""
    last: datetime | None
    size_bytes: int = 0
    """Uncompressed size by the file's own account."""

    def may_overlap(self, window: Window) -> bool:
        """Whether rows of the window can be in here."""
        if self.first is None or self.last is None:
            return True
        return self.first < window[1] and self.last >= window[0]


def list_units(surface: Surface, files: LogFiles) -> tuple[Unit, ...]:
    """Check every file's schema and list its row groups, in the order of files and rows.

    Raises:
        LogError: a file is not Parquet, is cut short, does not fit the surface, or there are no rows.
    """

    def of_file(path: str) -> list[Unit]:
        with files.open(path) as file:
            check_schema(surface, file.schema_arrow, source=path)
            return list(file_units(path, file.metadata))

    with ThreadPoolExecutor(READERS) as pool:
        units = tuple(unit for found in pool.map(of_file, files.paths) for unit in found if unit.rows)
    if not units:
        raise LogError(f"{files.source}: the Parquet files hold no rows; expected exploration logs")
    return units


def file_units(path: str, metadata: Any) -> Iterator[Unit]:
    """The row groups of one file, in order.

    Raises:
        LogError: the file is damaged.
    """
    try:
        timestamp = _timestamp_column(metadata)
        for i in range(metadata.num_row_groups):
            yield _unit(path, i, metadata.row_group(i), timestamp)
    except DAMAGE as error:
        raise unreadable(path, error) from error


def _timestamp_column(metadata: Any) -> int | None:
    """Number of the column. By the schema: Arrow 25 ends the process over the chunk of a column whose size
    statistics are damaged, so chunks are not looked at that nobody needs."""
    paths = (metadata.schema.column(j).path for j in range(metadata.num_columns))
    return next((j for j, name in enumerate(paths) if name == "timestamp"), None)


def _unit(path: str, index: int, group: Any, timestamp: int | None) -> Unit:
    first = last = None
    if timestamp is not None and timestamp < group.num_columns:
        chunk = group.column(timestamp)
        if chunk.path_in_schema == "timestamp" and chunk.is_stats_set and chunk.statistics.has_min_max:
            try:
                first, last = _instant(chunk.statistics.min), _instant(chunk.statistics.max)
            except (OverflowError, ValueError):  # outside the years 1 to 9999: no push-down then
                first = last = None
    return Unit(
        path=path,
        row_group=index,
        rows=group.num_rows,
        first=first,
        last=last,
        size_bytes=group.total_byte_size,
    )


def _instant(value: object) -> datetime | None:
    if not isinstance(value, datetime):  # some physical types come as plain integers: no push-down then
        return None
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def read_slices(
    files: LogFiles, unit: Unit, names: Sequence[str], rows: int = SLICE_ROWS
) -> Iterator[tuple[int, pa.Table]]:
    """Slices of a row group with those of the named columns that the file has, and their first row.

    Raises:
        LogError: the file is damaged.
    """
    offset = 0
    try:
        with pq.ParquetFile(unit.path, filesystem=files.filesystem) as file:
            present = [name for name in names if name in file.schema_arrow.names]
            for batch in file.iter_batches(
                batch_size=rows, row_groups=[unit.row_group], columns=present, use_threads=False
            ):
                batch.validate(full=True)  # text that is none, lists that end before they begin
                yield offset, pa.Table.from_batches([batch])
                offset += batch.num_rows
        if present and offset != unit.rows:
            raise LogError(
                f"{unit.path}: holds {offset} of the {unit.rows} rows that it says; is it damaged?"
            )
    except DAMAGE as error:
        raise unreadable(unit.path, error) from error


def time_range(files: LogFiles, units: Sequence[Unit], now: datetime) -> Window:
    """Earliest and latest timestamp that is not in the future, both inclusive.

    Taken from the files' statistics; the timestamps themselves are read only where these do not do.

    Raises:
        LogError: every timestamp is null or in the future.
    """
    with ThreadPoolExecutor(READERS) as pool:
        ranges = [found for found in pool.map(lambda unit: _range(files, unit, now), units) if found]
    if not ranges:
        raise LogError(f"{files.source}: no row has a timestamp before {now.isoformat()}")
    return min(first for first, _ in ranges), max(last for _, last in ranges)


def _range(files: LogFiles, unit: Unit, now: datetime) -> Window | None:
    if unit.first is not None and unit.last is not None and unit.last <= now:
        return unit.first, unit.last
    found: list[datetime] = []
    for _, table in read_slices(files, unit, ["timestamp"]):
        instants = columns.instants(columns.column(table, "timestamp"))
        past = instants[instants <= np.datetime64(now.replace(tzinfo=None), "us")]
        past = past[past >= columns.EARLIEST]
        if len(past):
            found += [as_datetime(past.min()), as_datetime(past.max())]
    return (min(found), max(found)) if found else None


@dataclass(frozen=True, kw_only=True)
class CleanReader:
    """Reads the good rows of a time window, unit by unit. Picklable: it travels to the workers."""

    surface: Surface
    files: LogFiles
    window: Window
    now: datetime
    duplicates: dict[tuple[str, int], npt.NDArray[np.int64]]
    """Row numbers, within (path, row group), whose request_id an earlier row has."""

    def units(self, units: Sequence[Unit]) -> tuple[Unit, ...]:
        """Those units that can hold rows of the window."""
        return tuple(unit for unit in units if unit.may_overlap(self.window))

    def tables(self, unit: Unit) -> Iterator[pa.Table]:
        """Slices of one unit: rows of the window that passed every check."""
        names = log_schema(self.surface).names
        duplicates = self.duplicates.get((unit.path, unit.row_group))
        for offset, table in read_slices(self.files, unit, names):
            keep = in_window(table, self.window)
            if duplicates is not None:
                inside = duplicates[(duplicates >= offset) & (duplicates < offset + table.num_rows)]
                keep[inside - offset] = False
            if not keep.all():
                table = table.filter(pa.array(keep))
            good = bad_rows(self.surface, table, self.now) == 0
            if not good.all():
                table = table.filter(pa.array(good))
            if table.num_rows:
                yield table


def in_window(table: pa.Table, window: Window) -> npt.NDArray[np.bool_]:
    """Which rows have a timestamp in the window."""
    instants = columns.instants(columns.column(table, "timestamp"))
    start, end = (np.datetime64(edge.replace(tzinfo=None), "us") for edge in window)
    return np.asarray((instants >= start) & (instants < end))
