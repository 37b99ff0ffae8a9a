from __future__ import annotations

from pathlib import Path

from benchmarks.sweep_cost import measure_valuing
from triton_models.surface import load_surface

SURFACE = load_surface(Path(__file__).parents[3] / "benchmarks/surfaces/homefeed.yaml")


def test_valuing_is_measured_per_row_and_says_whether_features_are_needed() -> None:
    plain, modelled = (measure_valuing(SURFACE, name, 4000, 400, 3) for name in ("snips", "dr"))
    assert not plain.needs_features
    assert modelled.needs_features
    assert 0 < plain.us_per_row < modelled.us_per_row
    assert plain.peak_gb > 0
