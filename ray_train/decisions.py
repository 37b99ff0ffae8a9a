"""The decision log and the company's events, read in bounded pieces.

Both are folders of Parquet files, local or on any filesystem that pyarrow knows. What travels from here to
the join is one narrow table of *transport rows* (:func:`transport_schema`): a decision, an event, or a count
of rows that go nowhere, each with the hash bucket of its request id.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_train import columns
from ray_train.attribution import DecisionFate, EventFate
from ray_train.duplicates import hash_strings
from ray_train.logs import DAMAGE, LogFiles, discover_files, unreadable
from ray_train.reading import READERS, Unit, file_units, read_slices
from triton_models.decision_format import (
    USER_IDS_KEY,
    check_decisions,
    check_events,
    event_schema,
    read_surface,
)
from triton_models.errors import LogError, SurfaceMismatchError
from triton_models.surface import Surface

EVENT_COLUMNS = tuple(event_schema().names)

DECISION, EVENT, DECISION_COUNT, EVENT_COUNT = range(4)
"""Kinds of transport rows. A count has its name in ``event`` and its number in ``value``."""

KEYS = pa.schema(
    [
        ("kind", pa.int8()),
        ("bucket", pa.int32()),
        ("request_id", pa.string()),
        ("timestamp", pa.timestamp("us", tz="UTC")),
        ("position", pa.int64()),
        ("explored", pa.bool_()),
        ("event", pa.string()),
        ("value", pa.float64()),
        ("event_id", pa.string()),
    ]
)

SLICE_BYTES = 16 << 20
"""Uncompressed Parquet bytes that one reader holds at once."""
SLICE_ROWS = 65_536


@dataclass(frozen=True, kw_only=True)
class Source:
    """Files and their row groups. Picklable."""

    files: LogFiles
    units: tuple[Unit, ...]

    @property
    def rows(self) -> int:
        """Rows of all files."""
        return sum(unit.rows for unit in self.units)

    @property
    def size_bytes(self) -> int:
        """Uncompressed size by the files' own account."""
        return sum(unit.size_bytes for unit in self.units)


def open_decisions(source: str, surface: Surface | None) -> tuple[Surface, Source]:
    """Find the decision files, and the surface they were made for.

    Args:
        source: folder or file, local or a URI.
        surface: the one they must have been made for; None takes the first file's.

    Raises:
        LogError: a file cannot be read or is none of decisions, or user ids are hashed in some files only.
        SurfaceMismatchError: a file was made for another surface; names the fields.
    """
    files = discover_files(source, expected="decisions")
    if surface is None:
        with files.open(files.paths[0]) as file:
            surface = read_surface(file.schema_arrow, source=files.paths[0])
    known, user_ids = surface, set[bytes]()

    def of_file(path: str) -> list[Unit]:
        with files.open(path) as file:
            check_decisions(known, file.schema_arrow, source=path)
            user_ids.add((file.schema_arrow.metadata or {}).get(USER_IDS_KEY, b"raw"))
            return list(file_units(path, file.metadata))

    units = _of_files(files, of_file)
    if len(user_ids) > 1:
        raise LogError(f"{source}: user ids are hashed in some files and raw in others; take one kind only")
    return known, Source(files=files, units=units)


def open_events(source: str) -> Source:
    """Find the event files.

    Raises:
        LogError: a file cannot be read or is none of events.
    """
    files = discover_files(source, expected="events")

    def of_file(path: str) -> list[Unit]:
        with files.open(path) as file:
            check_events(file.schema_arrow, source=path)
            return list(file_units(path, file.metadata))

    return Source(files=files, units=_of_files(files, of_file))


def _of_files(files: LogFiles, of_file: Callable[[str], list[Unit]]) -> tuple[Unit, ...]:
    with ThreadPoolExecutor(READERS) as pool:
        found = list(pool.map(of_file, files.paths))
    return tuple(unit for units in found for unit in units if unit.rows)


# ------------------------------------------------------------------------------------ transport rows


def transport_schema(payload: Mapping[str, pa.DataType]) -> pa.Schema:
    """Keys first, then what a decision carries."""
    return pa.schema([*KEYS, *(pa.field(name, kind) for name, kind in payload.items())])


@dataclass(frozen=True, kw_only=True)
class Reader:
    """Reads units as transport rows; the function that Ray Data maps is made of it. Picklable."""

    surface: Surface
    decisions: Source
    events: Source
    payload: dict[str, pa.DataType]
    """Columns that a decision carries, in the types that they travel in."""
    payload_if_explored: bool
    """Whether only explored decisions carry it; of the others the keys are enough."""
    buckets: int

    def decision_rows(self, number: int) -> Iterator[pa.Table]:
        """Transport rows of one unit of the decision log.

        Raises:
            LogError: the file is damaged, or holds a value that is none of its column.
            SurfaceMismatchError: a row was decided under another surface.
        """
        yield from _told(self.decisions.units[number].path, self._decision_rows(number))

    def event_rows(self, number: int) -> Iterator[pa.Table]:
        """Transport rows of one unit of the events: those the surface knows; the others are counted.

        Raises:
            LogError: the file is damaged, or holds a value that is none of its column.
        """
        yield from _told(self.events.units[number].path, self._event_rows(number))

    def _decision_rows(self, number: int) -> Iterator[pa.Table]:
        unit = self.decisions.units[number]
        names = ["request_id", "timestamp", "explored", "surface_fingerprint", *self.payload]
        for offset, table in read_slices(self.decisions.files, unit, names, _slice_rows(unit)):
            self._check_fingerprints(unit, table)
            ids = columns.strings(columns.column(table, "request_id"))
            t = columns.column(table, "timestamp")
            explored = columns.booleans(columns.column(table, "explored"))
            data = {
                "kind": pa.array(np.full(table.num_rows, DECISION, dtype=np.int8)),
                "bucket": _buckets(ids, self.buckets),
                "request_id": ids,
                "timestamp": columns.instants(t),
                "position": (number << 32) + offset + np.arange(table.num_rows),
                "explored": explored,
                **{name: columns.column(table, name) for name in self.payload},
            }
            good = np.asarray(pc.is_valid(ids)) & (columns.instants(t) >= columns.EARLIEST)  # not NaT
            carries = good & np.asarray(explored) if self.payload_if_explored else good
            rows = pa.table(data)
            bare = rows.select([name for name in KEYS.names if name in data])
            yield self._shaped(rows.filter(pa.array(carries)))
            yield self._shaped(bare.filter(pa.array(good & ~carries)))
            yield self._counted(DECISION_COUNT, {DecisionFate.INVALID: int((~good).sum())})

    def _event_rows(self, number: int) -> Iterator[pa.Table]:
        unit, rows = self.events.units[number], self.events.files
        for _, table in read_slices(rows, unit, EVENT_COLUMNS, _slice_rows(unit)):
            ids = columns.strings(columns.column(table, "request_id"))
            names = columns.strings(columns.column(table, "event"))
            t = columns.column(table, "timestamp")
            value = _values(table)
            counted = _among(names, self.surface.objectives)
            known = counted | _among(names, self.surface.metrics)
            good = np.asarray(pc.is_valid(ids)) & (columns.instants(t) >= columns.EARLIEST)
            good &= np.isfinite(value)
            good &= ~counted | ((value >= 0) & (value == np.floor(value)))
            identity = (
                columns.strings(columns.column(table, "event_id"))
                if "event_id" in table.column_names
                else pa.nulls(table.num_rows, pa.string())
            )
            data = {
                "kind": pa.array(np.full(table.num_rows, EVENT, dtype=np.int8)),
                "bucket": _buckets(ids, self.buckets),
                "request_id": ids,
                "timestamp": columns.instants(t),
                "event": names,
                "value": value,
                "event_id": identity,
            }
            yield self._shaped(pa.table(data).filter(pa.array(known & good)))
            fates = {EventFate.OTHER: int((~known).sum()), EventFate.INVALID: int((known & ~good).sum())}
            yield self._counted(EVENT_COUNT, fates)

    def _check_fingerprints(self, unit: Unit, table: pa.Table) -> None:
        for found in pc.unique(table.column("surface_fingerprint")).to_pylist():
            if found is not None and found != self.surface.fingerprint:
                raise SurfaceMismatchError(
                    f"{unit.path} and the surface were made for different control surfaces; they differ in "
                    f"surface_fingerprint ({str(found)[:12]} against {self.surface.fingerprint[:12]})"
                )

    def _shaped(self, table: pa.Table) -> pa.Table:
        schema = transport_schema(self.payload)
        arrays = [
            columns.unwrapped(columns.column(table, field.name)).cast(field.type)
            if field.name in table.column_names
            else pa.nulls(table.num_rows, field.type)
            for field in schema
        ]
        return pa.table(arrays, schema=schema)

    def _counted(self, kind: int, counts: Mapping[DecisionFate, int] | Mapping[EventFate, int]) -> pa.Table:
        some = {str(name): number for name, number in counts.items() if number}
        size = len(some)
        return self._shaped(
            pa.table(
                {
                    "kind": pa.array([kind] * size, pa.int8()),
                    "bucket": pa.array([0] * size, pa.int32()),
                    "event": pa.array(list(some), pa.string()),
                    "value": pa.array(list(some.values()), pa.float64()),
                }
            )
        )


def counted(rows: pa.Table, kind: int) -> Counter[str]:
    """The counts of one kind among transport rows, added up."""
    counts: Counter[str] = Counter()
    for row in rows.filter(pc.equal(rows.column("kind"), kind)).select(["event", "value"]).to_pylist():
        counts[row["event"]] += int(row["value"])
    return counts


def _told(path: str, rows: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The rows; what Arrow cannot make of a value is one line about the file."""
    try:
        yield from rows
    except DAMAGE as error:
        raise unreadable(path, error) from error


def _slice_rows(unit: Unit) -> int:
    width = unit.size_bytes / max(unit.rows, 1)
    return int(min(max(SLICE_BYTES / max(width, 1.0), 256), SLICE_ROWS))


def _buckets(ids: pa.Array, buckets: int) -> npt.NDArray[np.int32]:
    hashes = hash_strings(pc.fill_null(ids, ""))
    return (hashes % np.uint64(buckets)).astype(np.int32)


def _values(table: pa.Table) -> npt.NDArray[np.float64]:
    """The events' values; 1 where there is none."""
    if "value" not in table.column_names:
        return np.ones(table.num_rows)
    column = columns.column(table, "value")
    return np.where(np.asarray(pc.is_null(column)), 1.0, columns.floats(column, np.float64))


def _among(names: pa.Array, words: tuple[str, ...]) -> npt.NDArray[np.bool_]:
    return columns.codes(names, words) > 0
