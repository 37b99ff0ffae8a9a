"""The gate's arithmetic on cases whose answer is known; no Ray, no training."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ray_train.gate import best_static, decide, judge, middle_scalarizations, more_rows
from ray_train.ingest import Arrays, encode_training
from ray_train.shrinkage import calibration_slopes
from tests.support.logs import make_log, true_values
from tests.support.surfaces import small_surface
from triton_models.network import ValueNetwork
from triton_models.runs import Estimate

SURFACE = small_surface()
NOTHING = Estimate(estimate=0.0, low=-0.01, high=0.01)
UP = Estimate(estimate=0.02, low=0.01, high=0.03)
DOWN = Estimate(estimate=-0.02, low=-0.03, high=-0.01)


class Knows(ValueNetwork):
    """Answers the planted Q, or with a claim of its own that is true for nobody."""

    def __init__(self, effect: float, claims: float) -> None:
        torch.nn.Module.__init__(self)
        self.effect, self.claims = effect, claims

    def action_values(self, state: dict[str, torch.Tensor]) -> torch.Tensor:  # type: ignore[override]
        taste = state["user_embedding"][:, 0].numpy()
        q = true_values(SURFACE, taste * np.sign(self.claims), abs(self.claims))
        return torch.from_numpy(q.astype(np.float32))


def encoded(rows: int, effect: float, seed: int) -> Arrays:
    return encode_training(SURFACE, make_log(SURFACE, rows, effect=effect, seed=seed))


def verdict(effect: float, claims: float, rows: int = 6000) -> str:
    earlier, holdout = encoded(2000, effect, 1), encoded(rows, effect, 2)
    found = judge(SURFACE, Knows(effect, claims), earlier=earlier, holdout=holdout, log_rows=rows + 2000)
    assert found.passed == (found.level == "better")
    assert (found.more_rows is not None) == (found.level == "not yet")
    return found.level


def test_a_network_that_knows_the_truth_passes_and_one_that_has_it_upside_down_does_not() -> None:
    assert verdict(effect=0.2, claims=0.2) == "better"
    assert verdict(effect=0.2, claims=-0.2) == "worse"


def test_the_static_vector_is_chosen_by_rewards() -> None:
    # Action 6 is best for the first objective, action 2 for the second; logging likes action 0.
    rng, size = np.random.default_rng(0), SURFACE.num_actions
    chance = np.full(size, 0.5 / (size - 1))
    chance[0] = 0.5
    mean_AM = np.full((size, 2), 0.4)
    mean_AM[6, 0] = mean_AM[2, 1] = 0.6
    action = rng.choice(size, size=20_000, p=chance)
    rows = {
        "action": action.astype(np.int16),
        "propensity": chance[action].astype(np.float32),
        "rewards": (rng.random((20_000, 2)) < mean_AM[action]).astype(np.float32),
    }
    scalarization = np.array([[0.9, 0.1], [0.1, 0.9]])
    assert best_static(np.eye(size), [rows], scalarization).tolist() == [6, 2]
    halves = [{name: array[k::2] for name, array in rows.items()} for k in range(2)]
    assert best_static(np.eye(size), halves, scalarization).tolist() == [6, 2]


def test_promises_that_do_not_come_true_do_not_pass() -> None:
    assert verdict(effect=0.0, claims=0.2) in ("not yet", "worse")
    assert verdict(effect=0.0, claims=1e-9) in ("not yet", "static")


@pytest.mark.parametrize(
    ("static", "strongest", "production", "exact", "same", "level"),
    [
        (UP, UP, UP, UP, 0.2, "better"),
        (UP, UP, UP, NOTHING, 0.2, "better"),
        (UP, UP, UP, DOWN, 0.2, "not yet"),
        (NOTHING, UP, UP, UP, 0.2, "not yet"),
        (UP, DOWN, UP, UP, 0.2, "not yet"),
        (UP, Estimate(estimate=0.005, low=-0.01, high=0.02), UP, UP, 0.2, "better"),
        (UP, NOTHING, UP, UP, 0.2, "not yet"),
        (UP, UP, NOTHING, UP, 0.2, "not yet"),
        (DOWN, DOWN, UP, UP, 0.2, "worse"),
        (UP, UP, DOWN, UP, 0.2, "worse"),
        (NOTHING, NOTHING, NOTHING, NOTHING, 1.0, "static"),
    ],
)
def test_levels(
    static: Estimate, strongest: Estimate, production: Estimate, exact: Estimate, same: float, level: str
) -> None:
    assert decide(static, strongest, production, exact, same) == level


def test_rows_that_are_missing_follow_from_the_width_of_the_interval() -> None:
    # Half width 2 %, estimate 1 %: four times the rows, so three times as many more.
    wide = Estimate(estimate=0.01, low=-0.01, high=0.03)
    assert more_rows([wide], 1000) == pytest.approx(3000, abs=1)
    # An estimate below what is worth knowing: until 0.5 % would be seen, sixteen times the rows.
    below = Estimate(estimate=-0.01, low=-0.03, high=0.01)
    assert more_rows([below], 1000) == pytest.approx(15_000, abs=1)
    # Both comparisons have to be told: the harder one counts.
    assert more_rows([wide, below], 1000) == more_rows([below], 1000)
    assert more_rows([Estimate(estimate=0.0, low=-5.0, high=5.0)], 1_000_000) is None


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
def test_scalarizations_lie_inside_the_simplex(objectives: int) -> None:
    points = middle_scalarizations(objectives)
    assert np.allclose(points.sum(axis=1), 1.0)
    assert (points > 0).all()
    assert len({tuple(point) for point in points.tolist()}) == len(points)


def test_slopes_find_how_much_of_a_contrast_is_true() -> None:
    rng = np.random.default_rng(5)
    level, contrast = rng.normal(size=(2, 40_000, 2))
    true = level - 0.5 + contrast * np.array([0.4, 0.0])
    rewards = (rng.random(true.shape) < 1.0 / (1.0 + np.exp(-true))).astype(np.float32)
    user = np.repeat(np.arange(10_000), 4).astype(np.int32)
    found = calibration_slopes(level, contrast, rewards, user)
    assert found.slope_M == pytest.approx([0.4, 0.0], abs=0.04)
    assert found.error_M == pytest.approx([0.0115, 0.0115], rel=0.1)  # 1 / √(n E[p (1 - p)]), p near σ(-0.5)
    assert found.shrunk_M[0] == pytest.approx(0.4, abs=0.04)
    assert found.shrunk_M[1] < 0.02
