"""Unit tests start neither Ray nor Triton."""

from __future__ import annotations

import pytest


@pytest.fixture
def ray_cluster() -> None:
    """Refused here: such a test belongs to the integration tier."""
    pytest.fail("unit tests must not start Ray; move this test to tests/integration")
