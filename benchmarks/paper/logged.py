"""The feed's logged requests as arrays, a network fitted to them in process, and feature groups taken away.

Shape legend: n rows, P scalarizations, M objectives, R outcomes (objectives, then metrics), A actions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.feed import config as c
from benchmarks.feed.config import WorldConfig
from benchmarks.feed.requests import RequestBatch
from benchmarks.feed.world import World
from benchmarks.paper.settings import DAYS, Group, PaperSettings
from ray_train.in_process import fit_arrays
from ray_train.ingest import Arrays, engaged
from ray_train.learners import LEARNERS
from ray_train.shards import concatenate
from ray_train.shrinkage import shrink_to_data
from triton_models.network import ValueNetwork
from triton_models.surface import Surface, load_surface

SURFACE = Path(__file__).parents[1] / "surfaces" / "homefeed.yaml"
SLICE = 1024
SELECTION_SHARE = 0.1
"""Newest part of the training rows, which chooses the epoch; as ``fit`` does it."""
SHRINKAGE_ROWS = 32_768
GROUP_TENSORS: dict[Group, tuple[str, ...]] = {
    "user": ("user_embedding",),
    "history": ("history_embedding", "history_action", "history_age_s"),
    "context": ("context",),
}


def make_world(settings: PaperSettings, seed: int) -> World:
    """The home feed of one seed, with the settings' log."""
    config = WorldConfig(
        seed=seed,
        requests=settings.requests,
        days=DAYS,
        candidates=settings.candidates,
        users=settings.users,
    )
    return World(config, load_surface(SURFACE))


def logged_rows(world: World, first: int, count: int) -> Arrays:
    """State tensors, action, counts, rewards and user of requests explored uniformly, in order of time."""
    parts = []
    for start in range(first, first + count, SLICE):
        batch = world.requests(start, min(SLICE, first + count - start))
        action = world.logged_actions(batch)
        counts, _ = world.sample(batch, action)
        parts.append(
            {
                **batch.state_tensors(world.surface),
                "action": action.astype(np.int16),
                **engaged(counts[:, world.event_columns(world.surface.objectives)]),
                "user": batch.user.astype(np.int32),
            }
        )
    return concatenate(parts)


def outcomes(
    world: World, counts: npt.NDArray[Any], session: npt.NDArray[np.float64]
) -> npt.NDArray[np.float32]:
    """Engagements [..., 5] → clipped rewards and metrics [..., R], in the order of ``world.outcomes``."""
    surface = world.surface
    columns = [counts[..., c.EVENTS.index(name)] > 0 for name in surface.objectives]
    columns += [
        session > 0 if name == "successful_session" else counts[..., c.EVENTS.index(name)] > 0
        for name in surface.metrics
    ]
    return np.stack(columns, axis=-1).astype(np.float32)


def fitted(surface: Surface, rows: Arrays, *, learner: str, seed: int) -> ValueNetwork:
    """The product's learner on ``rows``: the newest tenth chooses the epoch and, of a committee, γ."""
    chosen = LEARNERS[learner]
    cut = int(len(rows["action"]) * (1.0 - SELECTION_SHARE))
    train = {name: array[:cut] for name, array in rows.items()}
    selection = {name: array[cut:] for name, array in rows.items()}
    network = fit_arrays(surface, chosen.network, chosen.fit_settings(seed=seed), train, selection)
    shrink_to_data(surface, network, {name: array[:SHRINKAGE_ROWS] for name, array in selection.items()})
    return network


def only(group: Group, arrays: Arrays) -> Arrays:
    """The rows with one feature group in: the other groups say "nothing known", which is zero throughout."""
    if group == "all":
        return arrays
    kept = GROUP_TENSORS[group]
    others = [name for names in GROUP_TENSORS.values() for name in names if name not in kept]
    return {name: np.zeros_like(array) if name in others else array for name, array in arrays.items()}


def cohort_codes(world: World, batch: RequestBatch) -> npt.NDArray[np.int16]:
    """Position of every request's cohort among the surface's, [n]."""
    names = world.surface.cohorts
    table = np.array([names.index(name) if name in names else -1 for name in c.COHORTS], dtype=np.int16)
    return np.asarray(table[batch.users.cohort[batch.user]])
