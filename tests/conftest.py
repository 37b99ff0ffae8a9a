"""Fixtures of every tier."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.support.surfaces import small_surface
from triton_models.surface import Surface

# How long an example takes says something about the machine's other work, not about the code.
settings.register_profile("puts", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("puts")


@pytest.fixture(scope="session")
def surface() -> Surface:
    """A small surface with every kind of field."""
    return small_surface()


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local Ray cluster of our own with four logical CPUs, ended with the session."""
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    import ray

    ray.init(
        num_cpus=4,
        include_dashboard=False,
        object_store_memory=400 * 1024**2,
        log_to_driver=False,
        configure_logging=False,
    )
    yield
    ray.shutdown()
