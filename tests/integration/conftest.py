"""The real Ray, started once for every test that needs it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest


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
