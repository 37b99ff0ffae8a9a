"""Which rows of a log cannot be learned from, and why. Vectorised; the same check everywhere.

A row counts once, under the first reason that applies in the order of :class:`Reason`. A row with any
reason is never trained on or evaluated with.
"""

from __future__ import annotations

from datetime import datetime
from enum import IntEnum

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_train import columns
from ray_train.ingest import logged_weights
from triton_models.surface import Surface

Mask = npt.NDArray[np.bool_]
Codes = npt.NDArray[np.int8]


class Reason(IntEnum):
    """Why a row is bad; 0 is a good row."""

    GOOD = 0
    MISSING_FIELD = 1
    """A required field is null (the propensity has a reason of its own)."""
    NOT_FINITE = 2
    """NaN or infinity, or a number too large for float32, in an embedding, age, weight or metric."""
    WRONG_SIZE = 3
    """An embedding of another size than the surface says."""
    RAGGED_HISTORY = 4
    """The three history lists of the row differ in length."""
    OFF_GRID_WEIGHTS = 5
    """The logged weights are no action of the surface."""
    BAD_PROPENSITY = 6
    """Null, NaN, or outside (0, 1]."""
    BAD_COUNT = 7
    """A reward that is negative or not a whole number."""
    FUTURE_TIMESTAMP = 8
    """Later than now."""
    IMPOSSIBLE_TIMESTAMP = 9
    """Before the year 1: no instant, but a number in another unit or uninitialised memory."""
    DUPLICATE_ID = 10
    """A request_id that an earlier row has (in the order of files and rows); that one stays."""

    @property
    def label(self) -> str:
        """The name in reports and in the quarantine folder."""
        return self.name.lower()


def bad_rows(surface: Surface, table: pa.Table, now: datetime) -> Codes:
    """The :class:`Reason` of every row, int8 [n]; duplicates are not seen here but across files."""
    reasons = np.zeros(table.num_rows, dtype=np.int8)

    def mark(reason: Reason, bad: Mask) -> None:
        reasons[bad & (reasons == 0)] = reason

    weights = logged_weights(surface, table)
    mark(Reason.MISSING_FIELD, _missing(surface, table))
    mark(Reason.NOT_FINITE, _not_finite(surface, table) | ~np.isfinite(weights).all(axis=1))
    mark(Reason.WRONG_SIZE, _wrong_size(surface, table))
    mark(Reason.RAGGED_HISTORY, _ragged(surface, table))
    mark(Reason.OFF_GRID_WEIGHTS, surface.action_indices(weights) < 0)
    mark(Reason.BAD_PROPENSITY, _bad_propensity(table))
    mark(Reason.BAD_COUNT, _bad_count(surface, table))
    instants = columns.instants(columns.column(table, "timestamp"))
    mark(Reason.FUTURE_TIMESTAMP, instants > np.datetime64(now.replace(tzinfo=None), "us"))
    mark(Reason.IMPOSSIBLE_TIMESTAMP, ~(instants >= columns.EARLIEST))
    return reasons


def _missing(surface: Surface, table: pa.Table) -> Mask:
    names = ["request_id", "timestamp", "user_id", "user_embedding"]
    if surface.state.history is not None:
        names += ["history_embedding", "history_action", "history_age_s"]
    names += [f"weight_{head}" for head in surface.controlled_heads]
    names += [f"reward_{name}" for name in surface.objectives]
    missing = np.zeros(table.num_rows, dtype=bool)
    for name in names:
        if table.column(name).null_count:
            missing |= np.asarray(pc.is_null(table.column(name)))
    return missing


def _not_finite(surface: Surface, table: pa.Table) -> Mask:
    bad = _rows_with_not_finite(columns.column(table, "user_embedding"))
    if surface.state.history is not None:
        bad |= _rows_with_not_finite(columns.column(table, "history_embedding"))
        bad |= _rows_with_not_finite(columns.column(table, "history_age_s"))
    for name in surface.metrics:
        if f"metric_{name}" in table.column_names:  # NaN is how many writers say null: only infinity is bad
            bad |= np.isinf(columns.floats(columns.column(table, f"metric_{name}")))
    return bad


def _rows_with_not_finite(array: pa.Array) -> Mask:
    """Rows of a (nested) list column with an entry that is null, NaN or infinite."""
    bad = np.zeros(len(array), dtype=bool)
    owner = np.arange(len(array))
    while columns.is_list(array.type):
        owner = np.repeat(owner, np.maximum(columns.list_lengths(array), 0))
        array = columns.flattened(array)
        if array.null_count and columns.is_list(array.type):
            bad[owner[np.asarray(pc.is_null(array))]] = True
    good = np.isfinite(columns.floats(array))
    if not good.all():
        bad[owner[~good]] = True
    return bad


def _wrong_size(surface: Surface, table: pa.Table) -> Mask:
    lengths = columns.list_lengths(columns.column(table, "user_embedding"))
    bad = lengths != surface.state.user_embedding
    if surface.state.history is not None:
        history = columns.column(table, "history_embedding")
        owner = np.repeat(np.arange(len(history)), np.maximum(columns.list_lengths(history), 0))
        items = columns.list_lengths(columns.flattened(history))
        bad[owner[items != surface.state.history.embedding]] = True
    return np.asarray(bad)


def _ragged(surface: Surface, table: pa.Table) -> Mask:
    if surface.state.history is None:
        return np.zeros(table.num_rows, dtype=bool)
    names = ("history_embedding", "history_action", "history_age_s")
    one, two, three = (columns.list_lengths(columns.column(table, name)) for name in names)
    return np.asarray((one != two) | (two != three))


def _bad_propensity(table: pa.Table) -> Mask:
    propensity = columns.floats(columns.column(table, "propensity"), np.float64)
    return ~((propensity > 0) & (propensity <= 1))


def _bad_count(surface: Surface, table: pa.Table) -> Mask:
    bad = np.zeros(table.num_rows, dtype=bool)
    for name in surface.objectives:
        count = columns.floats(columns.column(table, f"reward_{name}"), np.float64)
        bad |= ~((count >= 0) & (count == np.floor(count)) & np.isfinite(count))
    return bad
