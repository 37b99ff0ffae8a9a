"""The last screen of the demonstration says what was predicted and what was measured, in 80 columns."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks.demo import online_as_json
from benchmarks.online import Measured
from benchmarks.report import print_screen
from tests.support.frontiers import frontier_data
from triton_models.frontier import Frontier
from triton_models.surface import Surface

LOAD: dict[str, Any] = {
    "requests": 1234,
    "failures": 0,
    "choices": 600,
    "distinct_actions": 7,
    "fallbacks": {"late": 3},
    "control_on": {"requests": 500, "p50_ms": 12.34, "p95_ms": 20.0, "p99_ms": 30.0},
    "control_off": {"requests": 500, "p50_ms": 11.0, "p95_ms": 19.0, "p99_ms": 28.0},
    "on_minus_off_ms": {
        "p50_ms": {"difference": 1.34, "interval": [1.1, 1.6]},
        "p95_ms": {"difference": 1.0, "interval": None},
        "p99_ms": {"difference": 2.0, "interval": [-1.0, 5.0]},
    },
}


def measured_for(frontier: Frontier) -> Measured:
    points, outcomes = len(frontier.candidates), (*frontier.surface_object.objectives, "successful_session")
    lift = np.full((points, len(outcomes)), 0.0123)
    bounds = np.stack([lift - 0.001, lift + 0.001], axis=-1)
    return Measured(
        requests=20_000,
        outcomes=outcomes,
        lift_PR=lift,
        bounds_PR2=bounds,
        mean_weights_PW=np.full((points, 2), 50.0),
        static_lift_SR=lift - 0.02,
        static_bounds_SR2=bounds - 0.02,
    )


def test_the_screen_shows_prediction_measurement_latency_and_fallbacks(surface: Surface) -> None:
    frontier = Frontier.model_validate(frontier_data(surface))
    output = io.StringIO()
    console = Console(file=output, width=80)
    print_screen(
        console, frontier=frontier, measured=measured_for(frontier), load=LOAD, root=Path("somewhere")
    )
    text = output.getvalue()
    label, candidate = next(iter(frontier.candidates.items()))
    lift = frontier.points[candidate].lifts["repin"]
    assert lift is not None
    for expected in (
        label.replace("_", " "),
        f"{100 * lift:+.2f}",
        "+1.23",
        "[+1.13, +1.33]",
        "-0.77",
        "+1.3 [+1.1, +1.6]",
        "late 3",
        "somewhere/run/frontier.html",
    ):
        assert expected in text, expected
    assert "…" not in text
    assert all(len(line) <= 80 for line in text.splitlines())


def test_the_figures_are_kept_as_plain_data(surface: Surface) -> None:
    frontier = Frontier.model_validate(frontier_data(surface))
    first = online_as_json(frontier, measured_for(frontier))[0]
    assert first["personalized"]["repin"] == {"lift": 0.0123, "interval": [0.0113, 0.0133]}
    assert first["static_of_same_mean_weights"]["p2p"]["lift"] == -0.0077
