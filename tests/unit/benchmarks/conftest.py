"""Small worlds, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

import benchmarks
from benchmarks.feed.config import WorldConfig
from benchmarks.feed.world import World
from triton_models.surface import Surface, load_surface

HOMEFEED = Path(benchmarks.__file__).parent / "surfaces" / "homefeed.yaml"


@pytest.fixture(scope="session")
def homefeed() -> Surface:
    return load_surface(HOMEFEED)


@pytest.fixture(scope="session")
def world(homefeed: Surface) -> World:
    """The default world, with a log of 6,000 requests over its 21 days."""
    return World(WorldConfig(seed=3, requests=6000), homefeed)
