"""Surfaces for tests."""

from __future__ import annotations

from typing import Any

from triton_models.surface import Surface


def small_surface_data() -> dict[str, Any]:
    """Plain data of a small surface with every kind of field: 3 x 3 actions, two objectives."""
    return {
        "name": "small",
        "objectives": ["repin", "p2p"],
        "controlled": [
            {"head": "repin", "minimum": 10, "maximum": 200, "points": 3, "production": 91.6},
            {"head": "p2p", "minimum": 1, "maximum": 30, "points": 3, "production": 9.1},
        ],
        "fixed": {"click": 2.0, "hide": -40.0},
        "state": {
            "user_embedding": 4,
            "history": {"length": 5, "embedding": 3, "actions": ["save", "click"]},
            "context": {"device": ["phone", "web"], "daypart": ["night", "day"]},
        },
        "cohorts": ["core", "casual", "rest"],
        "metrics": ["successful_session"],
    }


def small_surface() -> Surface:
    """The surface of :func:`small_surface_data`."""
    return Surface.from_dict(small_surface_data())


def grid_surface(points: list[int], ranges: tuple[float, float] = (1, 10)) -> Surface:
    """The small surface with a grid of so many points, all weights with one range, and no fixed heads."""
    low, high = ranges
    controlled = [
        {"head": f"h{i}", "minimum": low, "maximum": high, "points": n, "production": 3.0}
        for i, n in enumerate(points)
    ]
    return Surface.from_dict({**small_surface_data(), "controlled": controlled, "fixed": {}})
