"""Fixtures of every tier. Unit tests may use these; they start neither Ray nor Triton."""

from __future__ import annotations

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
