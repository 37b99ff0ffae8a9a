"""What the simulated users do with what the sidecar really answered: engagement events.

A request of the feed is answered with weights (``/v1/weights``, the caller ranks with them) or with items
(``/v1/rank``). Either gives a slate; the feed's own law gives each slot's chance of each engagement; the
request's own random numbers decide. The same request shown the same slate always ends the same way.

Shape legend: n requests, K slots, W controlled weights, R outcomes (objectives, then metrics).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from benchmarks.feed import config as c
from benchmarks.feed.requests import RequestBatch
from benchmarks.feed.world import World
from triton_models.decision_format import event_schema
from triton_models.errors import BenchmarkError

Array = npt.NDArray[Any]

SESSION = "successful_session"
DELAY_S = 20.0
"""Engagements follow the answer within this long, evenly."""


def slates_of_items(batch: RequestBatch, items_nK: Sequence[Sequence[int]]) -> Array:
    """Positions of served items among the candidates, [n, K].

    Raises:
        BenchmarkError: an item that is no candidate of its request, or slates of different lengths.
    """
    slates = []
    for candidates, items in zip(batch.candidates, items_nK, strict=True):
        place = {int(item): i for i, item in enumerate(candidates.tolist())}
        try:
            slates.append([place[int(item)] for item in items])
        except KeyError as error:
            raise BenchmarkError(f"the sidecar served item {error}, which was no candidate") from error
    if len({len(slate) for slate in slates}) != 1:
        raise BenchmarkError("the sidecar served slates of different lengths")
    return np.array(slates, dtype=np.int32)


def engagement_events(
    world: World, batch: RequestBatch, slate_nK: Array, answered_us: Array, *, seed: int
) -> pa.Table:
    """Events of some requests, in the format that ``ray_train join`` reads.

    Args:
        world: the feed.
        batch: its requests.
        slate_nK: what each was shown.
        answered_us: when, microseconds since the epoch, [n].
        seed: of the delays.
    """
    counts, session = world.engage(batch, slate_nK)
    names = [*dict.fromkeys((*world.surface.objectives, *world.surface.metrics))]
    rng = np.random.default_rng([seed, batch.first])
    parts: list[tuple[Array, str]] = []
    for name in names:
        times = session.astype(np.int64) if name == SESSION else counts[:, c.EVENTS.index(name)]
        parts.append((np.repeat(np.arange(len(batch)), times), name))
    row = np.concatenate([rows for rows, _ in parts])
    event = np.repeat([name for _, name in parts], [len(rows) for rows, _ in parts])
    delay_us = (rng.random(len(row)) * DELAY_S * 1e6).astype(np.int64)
    stamps = pa.array(answered_us[row] + delay_us).cast(pa.timestamp("us", tz="UTC"))
    columns = {
        "request_id": pa.array(batch.request_id[row], pa.string()),
        "timestamp": stamps,
        "event": pa.array(event.tolist(), pa.string()),
        "value": pa.array(np.ones(len(row))),
        "event_id": pa.array([f"e{batch.first}-{seed}-{i}" for i in range(len(row))], pa.string()),
    }
    schema = event_schema()
    return pa.table([columns[name] for name in schema.names], schema=schema)
