"""The error of ``sweep --finer`` against the truth of a small world."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.cli import main
from benchmarks.feed.config import WorldConfig
from benchmarks.feed.truth import find_truth
from benchmarks.feed.world import World
from benchmarks.finer_error import _truth, measure_finer
from ray_train.finer import finer_grid
from triton_models.surface import load_surface

HOMEFEED = Path(__file__).parents[3] / "benchmarks" / "surfaces" / "homefeed.yaml"


def test_the_truth_of_explored_weights_is_the_feeds_own() -> None:
    surface = load_surface(HOMEFEED)
    grid = finer_grid(surface, 2)
    found = _truth(surface, grid, seed=4, requests=6, draws=2)
    world = World(WorldConfig(seed=4, requests=1000, days=21), surface)
    truth = find_truth(world, 1000, 6, draws=2).action_values_nAR[:, :, :2]
    explored = grid.action_T >= 0
    np.testing.assert_allclose(found[:, explored], truth[:, grid.action_T[explored]], atol=1e-12)


def test_more_to_choose_from_is_never_worth_less() -> None:
    error = measure_finer(load_surface(HOMEFEED), 2, seed=4, requests=16, draws=2)
    assert (error.request_gain_L >= 0).all()
    assert (error.static_gain_L >= 0).all()
    assert (error.largest_M > error.rms_M).all()
    assert (error.rms_M > error.upper_rms_M).all()


def test_the_door(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--factor", "2", "--requests", "4", "--draws", "1", "--seeds", "5", "--surface", str(HOMEFEED)]
    assert main(["finer", *options, "--out", str(tmp_path)]) == 0
    assert "world 5, repin: interpolation errs by" in capsys.readouterr().out
    assert list(json.loads((tmp_path / "finer.json").read_text())["worlds"]) == ["5"]
    assert main(["finer", "--factor", "1", "--out", str(tmp_path)]) == 2
    assert "factor must be at least 2" in capsys.readouterr().err
