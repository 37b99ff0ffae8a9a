"""Requests of the simulated feed → rows of the exploration log, as Arrow tables.

The columns and types are those of :func:`ray_train.logs.log_schema`. Actions are drawn uniformly over
the grid, so the propensity is 1/|A|; rewards are raw engagement counts.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from benchmarks.feed import config as c
from benchmarks.feed.requests import RequestBatch
from benchmarks.feed.world import World
from ray_train.logs import log_schema

Array = npt.NDArray[Any]

SLICE_ROWS = 1024
"""Requests simulated at a time: their scores fit into the cache."""


def log_table(world: World, first: int, count: int) -> pa.Table:
    """Logged requests ``first .. first + count - 1``, in order of time."""
    schema = log_schema(world.surface)
    parts = []
    for start in range(first, first + count, SLICE_ROWS):
        batch = world.requests(start, min(SLICE_ROWS, first + count - start))
        columns = _state_columns(world, batch) | _outcome_columns(world, batch)
        parts.append(pa.table([columns[name] for name in schema.names], schema=schema))
    return pa.concat_tables(parts).combine_chunks() if parts else schema.empty_table()


def _state_columns(world: World, batch: RequestBatch) -> dict[str, Any]:
    cohorts = pa.array(c.COHORTS, pa.string())
    used = batch.history_used
    columns: dict[str, Any] = {
        "request_id": pa.array(batch.request_id, pa.string()),
        "timestamp": pa.array(batch.timestamp, pa.timestamp("us")).cast(pa.timestamp("us", tz="UTC")),
        "user_id": pa.array(batch.user_id, pa.string()),
        "cohort": cohorts.take(pa.array(batch.users.cohort[batch.user])),
        "user_embedding": _vectors(batch.user_embedding),
    }
    if world.surface.state.history is not None:
        offsets = pa.array(np.concatenate([[0], used.sum(axis=1).cumsum()]).astype(np.int32))
        item = _vectors(batch.items.embedding[batch.history_item[used]])
        action = pa.array(c.ACTIONS, pa.string()).take(pa.array(batch.history_action[used]))
        columns["history_embedding"] = pa.ListArray.from_arrays(offsets, item)
        columns["history_action"] = pa.ListArray.from_arrays(offsets, action)
        columns["history_age_s"] = pa.ListArray.from_arrays(offsets, pa.array(batch.history_age_s[used]))
    for f, (name, words) in enumerate(c.CONTEXT.items()):
        columns[f"context_{name}"] = pa.array(words, pa.string()).take(pa.array(batch.context[:, f]))
    return columns


def _outcome_columns(world: World, batch: RequestBatch) -> dict[str, Any]:
    surface = world.surface
    action = world.logged_actions(batch)
    counts, session = world.sample(batch, action)
    columns: dict[str, Any] = {"propensity": pa.array(np.full(len(batch), 1.0 / surface.num_actions))}
    for j, head in enumerate(surface.controlled_heads):
        columns[f"weight_{head}"] = pa.array(surface.actions[action, j])
    for name in surface.objectives:
        columns[f"reward_{name}"] = pa.array(counts[:, c.EVENTS.index(name)])
    for name in surface.metrics:
        # The same clipping as for rewards: whether it happened, not how often.
        happened = session if name == "successful_session" else counts[:, c.EVENTS.index(name)] > 0
        columns[f"metric_{name}"] = pa.array(np.asarray(happened, dtype=np.float64))
    return columns


def _vectors(values: Array) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
