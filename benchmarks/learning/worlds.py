"""The worlds of the learning benchmark, their logs as arrays, and their truth.

A log of N rows is drawn from the same 21 days whatever N is: blocks of requests, evenly spread. So a small
log is what a capped share of the traffic would have been, and all sizes are valued on the same later
requests.

Shape legend: n rows, A actions, M objectives, R outcomes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.feed.config import Behaviour, WorldConfig
from benchmarks.feed.requests import RequestBatch
from benchmarks.feed.truth import Truth, find_truth
from benchmarks.feed.world import World
from ray_train.ingest import Arrays, engaged
from ray_train.shards import concatenate
from triton_models.errors import BenchmarkError
from triton_models.surface import load_surface

SURFACES = Path(__file__).parent.parent / "surfaces"
TRAFFIC = 1 << 21
"""Requests of the logged days, of which a log takes an even share."""
BLOCK = 1024
DRAWS = 16


@dataclass(frozen=True, kw_only=True)
class Feed:
    """A surface and the constants of a world; the seed makes the world."""

    surface: str
    settings: Mapping[str, object]
    summary: str

    def world(self, seed: int) -> World:
        """The world of one seed."""
        config = WorldConfig.model_validate({**self.settings, "seed": seed, "requests": TRAFFIC})
        return World(config, load_surface(SURFACES / self.surface))


def _shifted_bias(by: float) -> tuple[float, ...]:
    """Rewards of the two objectives more frequent."""
    return tuple(bias + (by if event < 2 else 0.0) for event, bias in enumerate(Behaviour().bias))


_MILD = {"contrast_scale": 0.5, "bias": _shifted_bias(1.0), "session_length": 4.0}
_BOARDS = {"candidates": 160, "k": 20, "users": 12_000, "items": 40_000}

FEEDS = {
    "homefeed": Feed(
        surface="homefeed.yaml", settings={}, summary="the demonstration's world; methods were chosen on it"
    ),
    "boards": Feed(
        surface="boards.yaml",
        settings={**_BOARDS, "behaviour": _MILD},
        summary="another surface, grid and feed; a reward near 0.5 and a gain of 0.7 to 1.7 % of it",
    ),
    "boards-strong": Feed(
        surface="boards.yaml",
        settings=_BOARDS,
        summary="the same surface with the demonstration's behaviour: a gain of 3 to 5 %",
    ),
    "shelves": Feed(
        surface="shelves.yaml",
        settings={
            "candidates": 200,
            "k": 22,
            "users": 15_000,
            "items": 45_000,
            "behaviour": {"contrast_scale": 0.55, "bias": _shifted_bias(0.9), "session_length": 4.5},
        },
        summary="gains nearly as small as those of boards; methods were chosen on it",
    ),
    "boards-null": Feed(
        surface="boards.yaml",
        settings={
            **_BOARDS,
            "behaviour": {
                **_MILD,
                "contrast_scale": 1e-6,
                "taste": (0.0,) * 5,
                "level": (0.0,) * 5,
            },
        },
        summary="almost nothing to personalize: all users and sessions want the same",
    ),
}


@cache
def load_world(feed: str, seed: int) -> World:
    """One world per process.

    Raises:
        BenchmarkError: there is no such feed.
    """
    if feed not in FEEDS:
        raise BenchmarkError(f"feed {feed!r}: there are {', '.join(FEEDS)}")
    return FEEDS[feed].world(seed)


def log_arrays(world: World, rows: int) -> Arrays:
    """An exploration log of ``rows`` rows in order of time: state tensors, action, counts, rewards, user.

    Raises:
        BenchmarkError: the log cannot be so long.
    """
    if not 1 <= rows <= TRAFFIC:
        raise BenchmarkError(f"a log has 1 to {TRAFFIC:,} rows, got {rows:,}")
    blocks = -(-rows // BLOCK)
    starts = (np.arange(blocks) * (TRAFFIC / blocks)).astype(np.int64) // BLOCK * BLOCK
    return _logged(world, starts.tolist(), rows)


def rows_after(world: World, first: int, rows: int) -> Arrays:
    """Logged rows from request ``first`` on, for a hold-out."""
    return _logged(world, range(first, first + rows, BLOCK), rows)


def _logged(world: World, starts: Iterable[int], rows: int) -> Arrays:
    parts = []
    for start in starts:
        batch = world.requests(start, BLOCK)
        action = world.logged_actions(batch)
        counts, _ = world.sample(batch, action)
        parts.append(
            {
                **_compact(state_arrays(world, batch)),
                "action": action.astype(np.int16),
                **engaged(counts[:, world.event_columns(world.surface.objectives)]),
                "user": batch.user.astype(np.int32),
                "propensity": np.full(BLOCK, 1.0 / world.surface.num_actions, dtype=np.float32),
            }
        )
    whole = concatenate(parts)
    return {name: array[:rows] for name, array in whole.items()}


def state_arrays(world: World, batch: RequestBatch) -> Arrays:
    """State tensors of a batch."""
    return batch.state_tensors(world.surface)


def _compact(state: Arrays) -> Arrays:
    return {
        name: array.astype(np.int16) if array.dtype == np.int64 else array for name, array in state.items()
    }


def truth_of(feed: str, seed: int, requests: int, cache_folder: Path) -> tuple[Arrays, Truth]:
    """States of requests after the log, and the value of every action there; kept on disk between runs."""
    world = load_world(feed, seed)
    batch = world.requests(TRAFFIC, requests)
    file = cache_folder / f"truth-{feed}-{seed}-{requests}.npz"
    if not file.exists():
        found = find_truth(world, TRAFFIC, requests, draws=DRAWS)
        cache_folder.mkdir(parents=True, exist_ok=True)
        staging = file.with_suffix(".tmp.npz")
        np.savez(staging, half=found.half_2nAR, production=found.production_nR)
        staging.rename(file)
    with np.load(file) as data:
        truth = Truth(
            outcomes=world.outcomes,
            objectives=len(world.surface.objectives),
            cohort=_objects(batch.cohort),
            production_nR=data["production"],
            half_2nAR=data["half"],
        )
    return state_arrays(world, batch), truth


def _objects(values: npt.NDArray[np.object_]) -> npt.NDArray[np.object_]:
    return np.asarray(values, dtype=object)
