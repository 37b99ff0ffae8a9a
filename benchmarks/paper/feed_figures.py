"""What the feed itself looks like: engagement per request, whose utility it is, what a weight's range does.

Head contribution (Eq. 11), over the items that weights w serve::

    c_i = ‖w_i h_i‖ / Σ_j ‖w_j h_j‖
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.feed import config as c
from benchmarks.feed.requests import RequestBatch
from benchmarks.feed.world import World
from benchmarks.paper.logged import make_world
from benchmarks.paper.parts import Part
from benchmarks.paper.settings import PaperSettings

REQUESTS = 20_000
CONTRIBUTION_REQUESTS = 2000
MOST = 5
"""Engagements from here on are one bar."""
RANGE_POINTS = 15

FloatArray = npt.NDArray[np.float64]


def feed_part(settings: PaperSettings, seed: int) -> Part:
    """Figures of one world, on requests after its log."""
    world = make_world(settings, seed)
    first, count = settings.requests, min(REQUESTS, settings.test_requests)
    few = world.requests(first, min(CONTRIBUTION_REQUESTS, count))
    surface = world.surface
    return {
        "seed": seed,
        "requests": count,
        "engagement": engagement(world, first, count),
        "heads": list(surface.heads),
        "production": dict(zip(surface.controlled_heads, surface.production.tolist(), strict=True)),
        "contribution": {
            "requests": len(few),
            "production": contribution(world, few, surface.production).tolist(),
            "ranges": {head: _range(world, few, w) for w, head in enumerate(surface.controlled_heads)},
        },
    }


def engagement(world: World, first: int, count: int) -> dict[str, list[float]]:
    """Share of requests with 0, 1, .. engagements of a kind under production; the last also has more."""
    batch = world.requests(first, count)
    counts, _ = world.engage(batch, world.slates(batch, world.surface.production))
    kinds = {name: counts[:, c.EVENTS.index(name)] for name in world.surface.objectives}
    kinds[" + ".join(world.surface.objectives)] = np.sum(list(kinds.values()), axis=0)
    return {name: shares(values).tolist() for name, values in kinds.items()}


def shares(values: npt.NDArray[np.integer[Any]], most: int = MOST) -> FloatArray:
    """Share of each count 0..most, [most + 1]; larger counts are in the last."""
    return np.bincount(np.minimum(values, most), minlength=most + 1) / len(values)


def contribution(world: World, batch: RequestBatch, weights: FloatArray) -> FloatArray:
    """``c_i`` of every head over the items that controlled weights [W] serve."""
    served = world.slates(batch, weights)
    scores = np.take_along_axis(world.head_scores(batch), served[:, :, None], axis=1)
    full = np.concatenate([weights, world.surface.fixed_weights])
    norm = np.linalg.norm((scores.astype(np.float64) * full).reshape(-1, len(full)), axis=0)
    return np.asarray(norm / norm.sum())


def _range(world: World, batch: RequestBatch, w: int) -> dict[str, list[float]]:
    """The head's share as its weight goes over its range, the others at production."""
    spec = world.surface.controlled[w]
    at = np.linspace(spec.minimum, spec.maximum, RANGE_POINTS)
    found = []
    for value in at:
        weights = world.surface.production.copy()
        weights[w] = value
        found.append(float(contribution(world, batch, weights)[w]))
    return {"weight": at.tolist(), "share": found}
