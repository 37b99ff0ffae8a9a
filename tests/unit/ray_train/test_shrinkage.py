"""How much of the personal contrasts is kept: all that is true, nothing of what is noise."""

from __future__ import annotations

import numpy as np

from ray_train.shrinkage import Slopes, calibration_slopes


def slopes(truth: float, rows: int, spread: float, seed: int) -> Slopes:
    """Rewards whose log-odds move by ``truth`` times the contrasts that are claimed."""
    rng = np.random.default_rng(seed)
    static_n1 = rng.normal(size=(rows, 1))
    personal_n1 = spread * rng.normal(size=(rows, 1))
    chance_n1 = 1.0 / (1.0 + np.exp(-static_n1 - truth * personal_n1))
    rewards_n1 = (rng.random((rows, 1)) < chance_n1).astype(np.float32)
    return calibration_slopes(static_n1, personal_n1, rewards_n1, np.arange(rows, dtype=np.int32))


def test_true_contrasts_are_kept_and_exaggerated_ones_cut() -> None:
    honest, loud = (slopes(truth, 40_000, 0.5, seed=1) for truth in (1.0, 0.4))
    assert 0.9 < honest.shrunk_M[0] <= 1.0
    assert abs(loud.slope_M[0] - 0.4) < 3.0 * loud.error_M[0]
    assert abs(loud.shrunk_M[0] - 0.4) < 0.1


def test_contrasts_that_are_small_beside_their_error_are_not_kept_whatever_their_slope() -> None:
    found = [slopes(0.0, 4000, 0.01, seed) for seed in range(8)]
    assert max(slope.slope_M[0] for slope in found) > 1.0  # by chance, as it happens
    assert all(slope.shrunk_M[0] == 0.0 for slope in found)
