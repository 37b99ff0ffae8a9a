"""Exploration logs with a known answer, written with plain pyarrow for any surface.

The planted world: every user has a taste ``t ∈ {-1, +1}``, the sign of ``user_embedding[0]``. Controlled
weight j (normalised to ã_j ∈ [0, 1]) moves objective m = j mod M only::

    P(r_m = 1 | s, a) = 0.5 + effect · t · Σ_{j ≡ m (mod M)} (2 ã_j - 1)

so with ``effect > 0`` the best action for a user with t = +1 has every weight at its maximum, and with
t = -1 every weight at its minimum, whatever λ > 0 is.
"""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from triton_models.surface import Surface

START = datetime(2026, 1, 1, tzinfo=UTC)


def true_values(surface: Surface, taste_n: npt.NDArray[Any], effect: float) -> npt.NDArray[np.float64]:
    """``P(r_m = 1)`` for every action, [n, A, M]."""
    signed_AW = 2 * surface.normalized_actions - 1
    objectives = len(surface.objectives)
    push_AM = np.stack([signed_AW[:, m::objectives].sum(axis=1) for m in range(objectives)], axis=1)
    return 0.5 + effect * np.asarray(taste_n)[:, None, None] * push_AM


def make_log(
    surface: Surface, rows: int, *, days: float = 21, effect: float = 0.2, seed: int = 0, users: int = 500
) -> pa.Table:
    """A log with uniform exploration over the grid, in order of time."""
    rng = np.random.default_rng(seed)
    state = surface.state
    user = rng.integers(users, size=rows)
    embedding = np.random.default_rng(seed + 1).normal(size=(users, state.user_embedding))[user]
    embedding[:, 0] = np.where(user % 2 == 0, 1.0, -1.0)
    action = rng.integers(surface.num_actions, size=rows)
    chance = true_values(surface, embedding[:, 0], effect)[np.arange(rows), action]
    seconds = np.sort(rng.uniform(0, days * 86_400, size=rows))
    columns: dict[str, Any] = {
        "request_id": [f"r{seed}-{i}" for i in range(rows)],
        "timestamp": pa.array(
            np.datetime64(START.replace(tzinfo=None), "us") + (seconds * 1e6).astype("timedelta64[us]")
        ).cast(pa.timestamp("us", tz="UTC")),
        "user_id": [f"u{u}" for u in user],
        "user_embedding": _fixed(embedding, state.user_embedding),
    }
    if state.history is not None:
        length = rng.integers(0, state.history.length + 3, size=rows)
        offsets = pa.array(np.concatenate([[0], np.cumsum(length)]).astype(np.int32))
        total = int(length.sum())
        item = _fixed(rng.normal(size=(total, state.history.embedding)), state.history.embedding)
        words = np.array([*state.history.actions, "unheard-of"])[
            rng.integers(len(state.history.actions) + 1, size=total)
        ]
        age = pa.array(rng.exponential(3600, size=total).astype(np.float32))
        columns["history_embedding"] = pa.ListArray.from_arrays(offsets, item)
        columns["history_action"] = pa.ListArray.from_arrays(offsets, pa.array(words, pa.string()))
        columns["history_age_s"] = pa.ListArray.from_arrays(offsets, age)
    for name, vocabulary in state.context.items():
        columns[f"context_{name}"] = np.array([*vocabulary, "other"])[
            rng.integers(len(vocabulary) + 1, size=rows)
        ]
    for j, head in enumerate(surface.controlled_heads):
        columns[f"weight_{head}"] = surface.actions[action, j]
    columns["propensity"] = np.full(rows, 1.0 / surface.num_actions)
    for m, name in enumerate(surface.objectives):
        hit = rng.random(rows) < chance[:, m]
        columns[f"reward_{name}"] = pa.array((hit * rng.integers(1, 3, size=rows)).astype(np.int32))
    if surface.cohorts:
        columns["cohort"] = [surface.cohorts[u % len(surface.cohorts)] for u in user]
    for name in surface.metrics:
        columns[f"metric_{name}"] = rng.random(rows)
    return pa.table(columns)


def _fixed(values: npt.NDArray[Any], width: int) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.astype(np.float32).ravel()), width)


def write_log(table: pa.Table, folder: Path, *, files: int = 3, row_group_rows: int = 1000) -> Path:
    """Write a table as several files of several row groups."""
    folder.mkdir(parents=True, exist_ok=True)
    edges = np.linspace(0, table.num_rows, files + 1).astype(int)
    for i, (start, end) in enumerate(pairwise(edges)):
        part = table.slice(start, end - start)
        pq.write_table(part, folder / f"part-{i:03d}.parquet", row_group_size=row_group_rows)
    return folder


def replace_cell(table: pa.Table, column: str, row: int, value: Any) -> pa.Table:
    """The table with one cell changed; how tests break a row."""
    values = table.column(column).to_pylist()
    values[row] = value
    index = table.column_names.index(column)
    kind = table.schema.field(index).type
    return table.set_column(index, pa.field(column, kind), pa.array(values, kind))
