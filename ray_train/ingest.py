"""A table of exploration logs → the arrays that training and evaluation work on.

The batch counterpart of :func:`triton_models.encoding.encode_state`, by the same rules (a test holds the
two equal row by row), on Arrow's buffers, without a Python loop over rows:

* of a longer history the newest N are used; a shorter one is zero-padded at the back;
* history entries whose action type is not in the vocabulary are left out before that;
* ages below zero are zero; a context value outside the vocabulary is code 0, unknown.

Shape legend: n rows, D user embedding, N history length, E item embedding, C context fields, W controlled
weights, M objectives, K guardrail metrics, L history entries of all rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_train import columns
from ray_train.duplicates import hash_strings
from triton_models.errors import LogError
from triton_models.surface import HistorySpec, Surface

Arrays = dict[str, npt.NDArray[Any]]

LARGEST_COUNT = np.iinfo(np.uint8).max
"""A count that is larger is taken for it."""


def encode_table(surface: Surface, table: pa.Table) -> Arrays:
    """Encode every row of a table that passed :func:`ray_train.rows.bad_rows`.

    Returns:
        The state tensors of :func:`triton_models.tensors.state_specs`, batch first, and

        ``action``      int64 [n], number of the logged action, -1 if it is not on the grid
        ``propensity``  float64 [n]
        ``counts``      uint8 [n, M], of which rewards are made; 255 and more are 255
        ``rewards``     float32 [n, M], counts clipped to {0, 1} (Eq. 3)
        ``metrics``     float32 [n, K], NaN where null or where the log has no such column
        ``user_id``     object [n]
        ``user``        int32 [n], a hash of the user id
        ``cohort``      object [n], None where null or where the log has no such column
        ``timestamp``   datetime64[us] [n], UTC

    Raises:
        LogError: a vector has another size than the surface says.
    """
    arrays = encode_training(surface, table)
    arrays["metrics"] = _metrics(surface, table)
    arrays["user_id"] = _objects(table, "user_id")
    arrays["cohort"] = _objects(table, "cohort")
    arrays["timestamp"] = columns.instants(columns.column(table, "timestamp"))
    return arrays


def encode_training(surface: Surface, table: pa.Table) -> Arrays:
    """The part of :func:`encode_table` that training reads: state, action, propensity, counts, rewards, user.

    ``user`` is an int32 hash of the user id: rows of one user share it, and hardly anybody else's do.
    """
    arrays = encode_states(surface, table)
    arrays["action"] = surface.action_indices(logged_weights(surface, table))
    arrays["propensity"] = columns.floats(columns.column(table, "propensity"), np.float64).copy()
    counts = [columns.floats(columns.column(table, f"reward_{name}")) for name in surface.objectives]
    arrays |= engaged(np.stack(counts, axis=1))
    arrays["user"] = (hash_strings(columns.column(table, "user_id")) >> np.uint64(33)).astype(np.int32)
    return arrays


def engaged(counts_nM: npt.NDArray[Any]) -> Arrays:
    """``counts`` and ``rewards`` of :func:`encode_table`, of raw counts per row and objective."""
    return {
        "counts": np.minimum(counts_nM, LARGEST_COUNT).astype(np.uint8),
        "rewards": (counts_nM > 0).astype(np.float32),
    }


def encode_states(surface: Surface, table: pa.Table) -> Arrays:
    """The state tensors of every row, batch first, in the order of the tensor specification."""
    user = _matrix(columns.column(table, "user_embedding"), surface.state.user_embedding, "user_embedding")
    # A copy: Arrow's memory is read-only, which torch does not take.
    arrays: Arrays = {"user_embedding": user.copy()}
    if surface.state.history is not None:
        arrays.update(_history(surface.state.history, table))
    if surface.state.context:
        fields = [
            columns.codes(columns.column(table, f"context_{name}"), words)
            for name, words in surface.state.context.items()
        ]
        arrays["context"] = np.stack(fields, axis=1)
    return arrays


def logged_weights(surface: Surface, table: pa.Table) -> npt.NDArray[np.float64]:
    """The logged controlled weights, [n, W]; NaN where null."""
    heads = surface.controlled_heads
    logged = [columns.floats(columns.column(table, f"weight_{head}"), np.float64) for head in heads]
    return np.stack(logged, axis=1)


def _matrix(array: pa.Array, width: int, name: str) -> columns.FloatArray:
    flat = columns.floats(columns.flattened(array))
    if len(flat) != len(array) * width:
        raise LogError(f"{name}: expected {width} numbers in each of {len(array)} rows, got {len(flat)}")
    return np.asarray(flat.reshape(len(array), width))


def _history(spec: HistorySpec, table: pa.Table) -> Arrays:
    action = columns.column(table, "history_action")
    rows = len(action)
    # Null action types are unknown ones. code_L numbers every entry of every row, one after the other.
    code_L = columns.codes(columns.flattened(action), spec.actions)
    row_L = np.repeat(np.arange(rows), np.maximum(columns.list_lengths(action), 0))
    entry, target = _newest(code_L > 0, row_L, rows, spec.length)
    item_LE = _matrix(
        columns.flattened(columns.column(table, "history_embedding")), spec.embedding, "history_embedding"
    )
    age_L = columns.floats(columns.flattened(columns.column(table, "history_age_s")))
    if not len(item_LE) == len(age_L) == len(code_L):
        raise LogError("history_embedding, history_action and history_age_s have different lengths")
    embedding = np.zeros((rows * spec.length, spec.embedding), dtype=np.float32)
    code = np.zeros(rows * spec.length, dtype=np.int64)
    age_s = np.zeros(rows * spec.length, dtype=np.float32)
    embedding[target] = item_LE if len(entry) == len(item_LE) else item_LE[entry]
    code[target] = code_L[entry]
    age_s[target] = np.maximum(age_L[entry], 0.0)
    return {
        "history_embedding": embedding.reshape(rows, spec.length, spec.embedding),
        "history_action": code.reshape(rows, spec.length),
        "history_age_s": age_s.reshape(rows, spec.length),
    }


def _newest(
    known_L: npt.NDArray[np.bool_], row_L: columns.IntArray, rows: int, length: int
) -> tuple[columns.IntArray, columns.IntArray]:
    """Entries to use and where they go in a padded [rows * length] array, front first."""
    entry = np.flatnonzero(known_L)
    row = row_L[entry]
    count = np.bincount(row, minlength=rows)
    first = np.cumsum(count) - count
    position = np.arange(len(entry)) - first[row] - np.maximum(count - length, 0)[row]
    keep = position >= 0
    return entry[keep], row[keep] * length + position[keep]


def _metrics(surface: Surface, table: pa.Table) -> columns.FloatArray:
    values = np.full((table.num_rows, len(surface.metrics)), np.nan, dtype=np.float32)
    for k, name in enumerate(surface.metrics):
        if f"metric_{name}" in table.column_names:
            values[:, k] = columns.floats(columns.column(table, f"metric_{name}"))
    return values


def _objects(table: pa.Table, name: str) -> npt.NDArray[np.object_]:
    if name not in table.column_names:
        return np.full(table.num_rows, None, dtype=object)
    array = columns.strings(columns.column(table, name))
    return np.asarray(array.to_numpy(zero_copy_only=False), dtype=object)
