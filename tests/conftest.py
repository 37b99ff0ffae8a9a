"""Fixtures of every tier. Unit tests may use these; they start neither Ray nor Triton."""

from __future__ import annotations

import pytest

from tests.support.surfaces import small_surface
from triton_models.surface import Surface


@pytest.fixture(scope="session")
def surface() -> Surface:
    """A small surface with every kind of field."""
    return small_surface()
