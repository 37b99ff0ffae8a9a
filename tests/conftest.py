"""Fixtures of every tier."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.support.surfaces import small_surface
from triton_models.local_ray import start_local_ray
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
    import ray

    start_local_ray(num_cpus=4, object_store_memory=400 * 1024**2, configure_logging=False)
    yield
    ray.shutdown()
