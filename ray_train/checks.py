"""One streaming pass over a log: bad rows by reason, duplicates across files, what the log holds.

:func:`check_unit` looks at one row group and :func:`summarize` adds the reports up, so that the pass runs
in threads (``validate``) or on a Ray cluster (``fit``) alike. The driver keeps 13 bytes per good row, for
the duplicates, and nothing else that grows with the log.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_train import columns
from ray_train.duplicates import hash_strings, later_occurrences
from ray_train.ingest import logged_weights
from ray_train.logs import LogFiles, log_schema
from ray_train.reading import Unit, read_slices
from ray_train.rows import Reason, bad_rows
from triton_models.errors import LogError
from triton_models.surface import Surface

EXAMPLES = 3
"""Bad rows that a message shows."""

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Example:
    """One bad row, for a message."""

    request_id: str
    path: str
    reason: Reason

    def __str__(self) -> str:
        return f"{self.request_id} in {self.path}: {self.reason.label}"


@dataclass(kw_only=True)
class Totals:
    """Sums over good rows that add up across units."""

    reasons: Array
    """Rows by :class:`Reason`, int64."""
    actions: Array
    """Rows by action, int64 [A]."""
    inverse: Array
    """Σ 1/p by action, float64 [A]."""
    variance: Array
    """Σ (1/p)(1/p - 1) by action, float64 [A]."""
    rewards: Array
    """Rows with reward 1 by objective, float64 [M]."""
    metric_sums: Array
    """Sum by metric over rows that have it, float64 [K]."""
    metric_rows: Array
    """Rows that have the metric, int64 [K]."""
    unknown: Array
    """Rows with an unknown value by context field, int64 [C]."""
    history: int = 0
    """History entries."""
    history_unknown: int = 0
    """History entries whose action type is not in the vocabulary."""
    cohorts: Counter[str] = field(default_factory=Counter)
    days: Counter[str] = field(default_factory=Counter)

    @classmethod
    def zero(cls, surface: Surface) -> Totals:
        """Nothing counted yet."""
        size, metrics = surface.num_actions, len(surface.metrics)
        return cls(
            reasons=np.zeros(len(Reason), dtype=np.int64),
            actions=np.zeros(size, dtype=np.int64),
            inverse=np.zeros(size),
            variance=np.zeros(size),
            rewards=np.zeros(len(surface.objectives)),
            metric_sums=np.zeros(metrics),
            metric_rows=np.zeros(metrics, dtype=np.int64),
            unknown=np.zeros(len(surface.state.context), dtype=np.int64),
        )

    def add(self, other: Totals) -> None:
        """Add another unit's sums to these."""
        for name in ("reasons", "actions", "inverse", "variance", "rewards", "metric_sums", "metric_rows"):
            getattr(self, name)[:] += getattr(other, name)
        self.unknown += other.unknown
        self.history += other.history
        self.history_unknown += other.history_unknown
        self.cohorts.update(other.cohorts)
        self.days.update(other.days)


@dataclass(frozen=True, kw_only=True)
class UnitReport:
    """What one row group holds."""

    unit: Unit
    totals: Totals
    examples: tuple[Example, ...]
    hashes: npt.NDArray[np.uint64]
    """64-bit hash of the request_id of every good row."""
    offsets: npt.NDArray[np.int32]
    """Its row number within the unit."""
    segments: npt.NDArray[np.int8]
    """Which of the time segments it falls into."""


def check_unit(
    surface: Surface, files: LogFiles, unit: Unit, now: datetime, edges: Sequence[datetime] = ()
) -> UnitReport:
    """Check every row of a row group; ``edges`` cut time into the segments that are counted."""
    totals = Totals.zero(surface)
    examples: list[Example] = []
    hashes, offsets, segments = [], [], []
    cuts = np.array([edge.replace(tzinfo=None) for edge in edges], dtype="datetime64[us]")
    for offset, table in read_slices(files, unit, log_schema(surface).names):
        reasons = bad_rows(surface, table, now)
        totals.reasons += np.bincount(reasons, minlength=len(Reason))
        good = reasons == 0
        if not good.all():
            examples += _examples(table, reasons, unit.path, EXAMPLES - len(examples))
            table = table.filter(pa.array(good))
        _count(surface, table, totals)
        hashes.append(hash_strings(columns.column(table, "request_id")))
        offsets.append((offset + np.flatnonzero(good)).astype(np.int32))
        instants = columns.instants(columns.column(table, "timestamp"))
        segments.append(np.searchsorted(cuts, instants, side="right").astype(np.int8))
    return UnitReport(
        unit=unit,
        totals=totals,
        examples=tuple(examples),
        hashes=np.concatenate(hashes),
        offsets=np.concatenate(offsets),
        segments=np.concatenate(segments),
    )


def _examples(table: pa.Table, reasons: Array, path: str, most: int) -> list[Example]:
    rows = np.flatnonzero(reasons)[:most]
    names = columns.strings(columns.column(table, "request_id")).take(pa.array(rows)).to_pylist()
    return [
        Example(
            request_id="(no request_id)" if name is None else name, path=path, reason=Reason(reasons[row])
        )
        for name, row in zip(names, rows, strict=True)
    ]


def _count(surface: Surface, table: pa.Table, totals: Totals) -> None:
    action = surface.action_indices(logged_weights(surface, table))
    size = surface.num_actions
    totals.actions += np.bincount(action, minlength=size)
    with np.errstate(over="ignore"):  # 1e-300 is a propensity, too
        inverse = 1.0 / columns.floats(columns.column(table, "propensity"), np.float64)
        totals.inverse += np.bincount(action, inverse, minlength=size)
        totals.variance += np.bincount(action, inverse * (inverse - 1.0), minlength=size)
    for m, name in enumerate(surface.objectives):
        totals.rewards[m] += (columns.floats(columns.column(table, f"reward_{name}")) > 0).sum()
    for k, name in enumerate(surface.metrics):
        if f"metric_{name}" in table.column_names:
            values = columns.floats(columns.column(table, f"metric_{name}"), np.float64)
            totals.metric_sums[k] += np.nansum(values)
            totals.metric_rows[k] += np.isfinite(values).sum()
    for c, (name, words) in enumerate(surface.state.context.items()):
        totals.unknown[c] += (columns.codes(columns.column(table, f"context_{name}"), words) == 0).sum()
    if surface.state.history is not None:
        entries = columns.flattened(columns.column(table, "history_action"))
        totals.history += len(entries)
        totals.history_unknown += int((columns.codes(entries, surface.state.history.actions) == 0).sum())
    if "cohort" in table.column_names:
        cohorts = pc.fill_null(columns.strings(columns.column(table, "cohort")), "(none)")
        totals.cohorts.update(_value_counts(cohorts))
    days = columns.instants(columns.column(table, "timestamp")).astype("datetime64[D]")
    names, counts = np.unique(days, return_counts=True)
    totals.days.update({str(name): int(count) for name, count in zip(names, counts, strict=True)})


def _value_counts(array: pa.Array) -> dict[str, int]:
    return {item["values"]: item["counts"] for item in pc.value_counts(array).to_pylist()}


@dataclass(frozen=True, kw_only=True)
class LogReport:
    """What a whole log holds."""

    rows: int
    totals: Totals
    """Over all units; good rows include the duplicates, which are few or the log is refused."""
    segments: tuple[int, ...]
    """Good rows, without duplicates, of each time segment."""
    duplicates: dict[tuple[str, int], npt.NDArray[np.int64]]
    """(path, row group) → row numbers to leave out."""
    examples: tuple[Example, ...]
    bad_units: tuple[Unit, ...]
    """Units with at least one bad row."""

    @property
    def bad(self) -> int:
        """Rows that must not be learned from."""
        return int(self.totals.reasons[1:].sum())

    @property
    def good(self) -> int:
        """Rows that can be learned from."""
        return self.rows - self.bad

    def by_reason(self) -> dict[str, int]:
        """Bad rows by reason, those that occur."""
        return {
            reason.label: int(n)
            for reason, n in zip(Reason, self.totals.reasons, strict=True)
            if n and reason
        }

    def refuse_if_bad(self, source: str, max_bad_share: float) -> None:
        """Stop on a log with too many bad rows.

        Raises:
            LogError: with counts by reason and the first examples, or if no good row is left.
        """
        share = self.bad / max(self.rows, 1)
        if share <= max_bad_share and self.good > 0:
            return
        counts = ", ".join(f"{name} {count}" for name, count in self.by_reason().items())
        shown = "; ".join(str(example) for example in self.examples)
        raise LogError(
            f"{source}: {self.bad} of {self.rows} rows are bad ({100 * share:.2f} %, at most "
            f"{100 * max_bad_share:g} % accepted): {counts}; first: {shown}"
        )


def summarize(surface: Surface, reports: Iterable[UnitReport], segments: int = 1) -> LogReport:
    """Add unit reports up, in the order of the units, and find the duplicates among them."""
    totals = Totals.zero(surface)
    kept = list(reports)
    for report in kept:
        totals.add(report.totals)
    rows = int(totals.reasons.sum())
    hashes = [np.zeros(0, dtype=np.uint64), *(report.hashes for report in kept)]
    later = later_occurrences(np.concatenate(hashes))
    ends = np.cumsum([len(report.hashes) for report in kept])
    counts = np.zeros(segments, dtype=np.int64)
    for report in kept:
        counts += np.bincount(report.segments, minlength=segments)
    duplicates = {}
    for i in np.unique(np.searchsorted(ends, later, side="right")):
        report, start = kept[i], ends[i] - len(kept[i].hashes)
        index = later[(later >= start) & (later < ends[i])] - start
        duplicates[report.unit.path, report.unit.row_group] = report.offsets[index].astype(np.int64)
        counts -= np.bincount(report.segments[index], minlength=segments)
    totals.reasons[Reason.GOOD] -= len(later)
    totals.reasons[Reason.DUPLICATE_ID] += len(later)
    return LogReport(
        rows=rows,
        totals=totals,
        segments=tuple(int(count) for count in counts),
        duplicates=duplicates,
        examples=tuple(example for report in kept for example in report.examples)[:EXAMPLES],
        bad_units=tuple(
            report.unit
            for report in kept
            if report.totals.reasons[1:].any() or (report.unit.path, report.unit.row_group) in duplicates
        ),
    )
