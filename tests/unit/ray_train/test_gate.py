"""The gate's arithmetic on cases whose answer is known; no Ray, no training."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ray_train import gate as gate_module
from ray_train.estimators_basis import utility_basis
from ray_train.gate import (
    FOLDS,
    Gate,
    Logged,
    Thinned,
    clusters_within,
    decide,
    judge,
    middle_scalarizations,
    more_rows,
)
from ray_train.ingest import Arrays, encode_training
from ray_train.production import production_policy
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
    assert Logged(size, 2).add(rows).best_static(np.eye(size), scalarization).tolist() == [6, 2]
    first, second = (Logged(size, 2).add({name: array[k::2] for name, array in rows.items()}) for k in (0, 1))
    assert first.with_(second).best_static(np.eye(size), scalarization).tolist() == [6, 2]


def test_the_sums_are_the_formulas_of_the_module_row_by_row() -> None:
    """Everything written out per row, with whole users as clusters."""
    earlier, rows = encoded(2000, 0.1, 1), encoded(3000, 0.1, 2)
    network = Knows(0.1, 0.15)
    found = judge(SURFACE, network, earlier=earlier, holdout=rows, log_rows=5000)
    lam, smoother = middle_scalarizations(2), utility_basis(SURFACE).hat_AA
    q = gate_module.action_values(SURFACE, network, rows).astype(np.float64)
    n, logged, inverse = np.arange(3000), rows["action"], 1.0 / rows["propensity"].astype(np.float64)
    surprise = (rows["rewards"] - q[n, logged]) * inverse[:, None]
    user = rows["user"] % clusters_within(gate_module.CLUSTER_BYTES, 8 * len(lam) * SURFACE.num_actions)
    fold = user % FOLDS

    def psi(chosen: np.ndarray, weights: np.ndarray, hat: np.ndarray) -> np.ndarray:
        model = np.einsum("na,nam->nm", hat[chosen], q) @ weights
        return np.asarray(model + hat[chosen, logged] * (surprise @ weights))

    def static(parts: list[tuple[dict[str, np.ndarray], np.ndarray]], weights: np.ndarray) -> int:
        action, chance, reward = (
            np.concatenate([part[name][which] for part, which in parts])
            for name in ("action", "propensity", "rewards")
        )
        value = (reward - reward.mean(axis=0)) @ weights / chance
        return int((smoother[:, action] @ value).argmax())

    gains: dict[str, list[np.ndarray]] = {"static": [], "strongest": [], "production": [], "exact": []}
    production = production_policy(SURFACE, "smooth").probability_A
    everybody = np.ones(len(earlier["action"]), dtype=bool)
    for weights in lam:
        chosen = (q @ weights).argmax(axis=1)
        picks = [static([(earlier, everybody), (rows, fold != f)], weights) for f in range(FOLDS)]
        rival = np.array(picks)[fold]
        each = np.stack([psi(np.full(3000, a), weights, smoother) for a in range(SURFACE.num_actions)])
        made = psi(chosen, weights, smoother)
        scale = (each * production[:, None]).sum(axis=0).mean()
        for name, other in (
            ("static", psi(rival, weights, smoother)),
            ("strongest", each[each.sum(axis=1).argmax()]),
            ("production", (each * production[:, None]).sum(axis=0)),
        ):
            gains[name].append((made - other) / scale)
        sharp = np.eye(SURFACE.num_actions)
        gains["exact"].append((psi(chosen, weights, sharp) - psi(rival, weights, sharp)) / scale)
    for name, per_lambda in gains.items():
        one = np.mean(per_lambda, axis=0)
        error = np.sqrt((np.bincount(user, weights=one - one.mean()) ** 2).sum()) / 3000
        shown = getattr(found, name if name == "exact" else f"versus_{name}")
        assert shown.estimate == pytest.approx(one.mean(), abs=1e-9)
        assert shown.high - shown.low == pytest.approx(2 * 1.959964 * error, rel=1e-9)


def test_rows_may_come_in_any_parts_and_what_is_kept_does_not_grow() -> None:
    earlier, rows = encoded(1000, 0.1, 1), encoded(4000, 0.1, 2)
    gate = Gate(SURFACE, Knows(0.1, 0.15), earlier)

    def kept() -> int:
        arrays = [value for value in vars(gate).values() if isinstance(value, np.ndarray)]
        sums = [value for logged in gate.logged_F for value in vars(logged).values()]
        return sum(array.nbytes for array in (*arrays, *sums) if isinstance(array, np.ndarray))

    before = kept()
    for start in range(0, 4000, 700):
        gate.add({name: array[start : start + 700] for name, array in rows.items()})
    assert kept() == before
    whole = judge(SURFACE, Knows(0.1, 0.15), earlier=earlier, holdout=rows, log_rows=5000)
    parts = gate.verdict(log_rows=5000)
    assert parts.level == whole.level
    assert parts.rows == whole.rows == 4000
    assert parts.same_as_static == whole.same_as_static
    for name in ("versus_static", "versus_strongest", "versus_production", "exact", "calibrated"):
        one, other = getattr(parts, name), getattr(whole, name)
        assert (one.estimate, one.low, one.high) == pytest.approx((other.estimate, other.low, other.high))


def test_few_clusters_keep_the_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    earlier, rows = encoded(1000, 0.1, 1), encoded(8000, 0.1, 2)
    apart = judge(SURFACE, Knows(0.1, 0.15), earlier=earlier, holdout=rows, log_rows=9000)
    monkeypatch.setattr(gate_module, "MOST_CLUSTERS", 256)
    together = judge(SURFACE, Knows(0.1, 0.15), earlier=earlier, holdout=rows, log_rows=9000)
    assert together.versus_production.estimate == pytest.approx(apart.versus_production.estimate)
    widths = [one.versus_production.high - one.versus_production.low for one in (together, apart)]
    assert widths[0] == pytest.approx(widths[1], rel=0.2)  # 1 / √(2 C) is 4 %


def test_clusters_fit_the_memory_and_nest_in_the_folds() -> None:
    assert clusters_within(1 << 28, 8 * 3 * 49) == 1 << 16
    assert clusters_within(1 << 28, 8 * 10 * 2401) == 1396
    assert clusters_within(1 << 10, 8 * 10 * 2401) == 256


def test_thinned_rows_are_evenly_spread_and_bounded() -> None:
    thinned = Thinned(100)
    for start in range(0, 5000, 37):
        thinned.add({"x": np.arange(start, min(start + 37, 5000))})
        assert sum(len(part["x"]) for part in thinned.parts) == thinned.kept < 200
    kept = thinned.whole()["x"]
    assert kept.tolist() == list(range(0, 5000, thinned.step))
    few = Thinned(100)
    few.add({"x": np.arange(150)})
    assert few.whole()["x"].tolist() == list(range(150))


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
