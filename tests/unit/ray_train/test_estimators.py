from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_train.estimators import (
    ActionMixture,
    ChosenActions,
    LoggedRows,
    RewardAtHit,
    SelfNormalizedIPS,
    logging_is_uniform,
)
from ray_train.estimators_basis import interpolation
from ray_train.evaluation import evaluate
from ray_train.production import production_note, production_policy, static_mixture
from tests.support.frontiers import planted_rows
from tests.support.surfaces import small_surface_data
from triton_models.surface import Surface


def logged(actions: list[int], propensity: list[float], outcome: list[list[float]]) -> LoggedRows:
    return LoggedRows(
        user_N=np.arange(len(actions), dtype=np.int32),
        action_N=np.array(actions, dtype=np.int16),
        propensity_N=np.array(propensity),
        outcome_NR=np.array(outcome, dtype=np.float32),
    )


# Actions 0 0 1 2 1 with propensities ½ ¼ ¼ ¼ ½, one reward and one metric (null in row 1).
ROWS = logged([0, 0, 1, 2, 1], [0.5, 0.25, 0.25, 0.25, 0.5], [[1, 3], [0, np.nan], [1, 5], [1, 7], [0, 9]])
# The policy chooses 0 0 1 1 1: rows 0, 1, 2 and 4 are hits.
POLICY = ChosenActions(np.array([0, 0, 1, 1, 1], dtype=np.int16))


def value(estimator: RewardAtHit | SelfNormalizedIPS, policy: ChosenActions | ActionMixture) -> list[float]:
    return evaluate(estimator, ROWS, [policy], None).value_PR[0].tolist()


def test_reward_at_hit_by_hand() -> None:
    # rewards 1 0 1 0 of the hits; metric 3, 5, 9 of the three that have it
    assert value(RewardAtHit(), POLICY) == pytest.approx([2 / 4, 17 / 3])


def test_snips_by_hand() -> None:
    # weights 2 4 4 2: reward (2 + 4) / 12; metric (2·3 + 4·5 + 2·9) / (2 + 4 + 2)
    assert value(SelfNormalizedIPS(), POLICY) == pytest.approx([6 / 12, 44 / 8])


@pytest.mark.parametrize("estimator", [RewardAtHit(), SelfNormalizedIPS()])
def test_a_mixture_is_weighted_by_its_probabilities(estimator: SelfNormalizedIPS) -> None:
    # π = (¼, ¾, 0): weights ½ 1 3 0 1.5, reward (0.5 + 3) / 6, metric (½·3 + 3·5 + 1.5·9) / 5
    mixture = ActionMixture(np.array([0.25, 0.75, 0.0]))
    assert value(estimator, mixture) == pytest.approx([3.5 / 6, 30 / 5])


def test_hits_and_effective_sample_size() -> None:
    result = evaluate(SelfNormalizedIPS(), ROWS, [POLICY, POLICY], None)
    assert result.hits_P.tolist() == [4, 4]
    assert result.effective_P[0] == pytest.approx(12**2 / (4 + 16 + 16 + 4))


def test_no_hit_gives_no_value_rather_than_a_number() -> None:
    nobody = ChosenActions(np.full(5, 7, dtype=np.int16))
    result = evaluate(RewardAtHit(), ROWS, [POLICY, nobody], None)
    assert np.isnan(result.value_PR[1]).all()
    assert np.isnan(result.lift_PR[1]).all()
    assert result.hits_P[1] == 0
    assert result.effective_P[1] == 0.0


def test_a_baseline_worth_nothing_gives_no_lift() -> None:
    rows = logged([0, 1], [0.5, 0.5], [[0], [1]])
    zero, one = (ChosenActions(np.full(2, a, dtype=np.int16)) for a in (0, 1))
    result = evaluate(RewardAtHit(), rows, [zero, one], None)
    assert result.value_PR[:, 0].tolist() == [0.0, 1.0]
    assert np.isnan(result.lift_PR).all()


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 12))
def test_under_uniform_logging_snips_is_reward_at_hit(seed: int, num_actions: int) -> None:
    rng = np.random.default_rng(seed)
    rows = logged(
        rng.integers(num_actions, size=50).tolist(),
        [1.0 / num_actions] * 50,
        rng.integers(2, size=(50, 2)).tolist(),
    )
    policy = ChosenActions(rng.integers(num_actions, size=50).astype(np.int16))
    one, two = (evaluate(cls(), rows, [policy], None) for cls in (RewardAtHit, SelfNormalizedIPS))
    np.testing.assert_allclose(one.value_PR, two.value_PR, rtol=1e-12)
    assert logging_is_uniform(rows.propensity_N, num_actions)


def test_the_planted_lift_is_found(surface: Surface) -> None:
    # The best policy earns 0.5 + 0.2 on both objectives, production 0.5 in expectation: lift 0.4.
    scored = planted_rows(surface, 60_000, 1)
    policies = [production_policy(surface, "mixture"), ChosenActions(scored.chosen_NP[:, 0])]
    result = evaluate(SelfNormalizedIPS(), scored.rows, policies, None)
    assert result.value_PR[1, :2] == pytest.approx([0.7, 0.7], abs=0.02)
    assert result.lift_PR[1, :2] == pytest.approx([0.4, 0.4], abs=0.06)
    assert result.lift_PR[0].tolist() == [0.0, 0.0, 0.0]


def test_snips_is_right_under_any_logging_policy_and_reward_at_hit_is_not(surface: Surface) -> None:
    # The first action is logged 20 times as often as the others. The policy takes the best action for half
    # of the users, and always the last one for the other half; its hits are mostly first actions.
    chance = np.ones(surface.num_actions)
    chance[0] = 20
    scored = planted_rows(surface, 100_000, 1, logging_A=chance / chance.sum())
    taste = np.where(scored.rows.user_N % 2 == 0, 1, -1)
    half = scored.rows.user_N % 4 < 2  # half of the users of each taste
    best = scored.chosen_NP[:, 0]
    policy = ChosenActions(np.where(half, best, surface.num_actions - 1).astype(np.int16))
    truth = np.where(half, 0.7, np.where(taste > 0, 0.7, 0.3)).mean()
    snips, hit = (
        evaluate(cls(), scored.rows, [policy], None).value_PR[0, 0]
        for cls in (SelfNormalizedIPS, RewardAtHit)
    )
    assert snips == pytest.approx(truth, abs=0.02)
    assert abs(hit - truth) > 0.05
    assert not logging_is_uniform(scored.rows.propensity_N, surface.num_actions)


def test_static_mixture_has_the_mean_that_was_asked_for(surface: Surface) -> None:
    weights = np.array([50.0, 20.0])
    mixture = static_mixture(surface, weights).probability_A
    assert mixture @ surface.actions == pytest.approx(weights)
    assert mixture.sum() == pytest.approx(1.0)
    assert production_policy(surface, "mixture").probability_A @ surface.actions == pytest.approx(
        surface.production
    )


def test_a_smooth_valuation_averages_the_grid(surface: Surface) -> None:
    # Three points a weight are too few to tell a curve: the corners of the cell are used.
    assert production_policy(surface, "smooth").probability_A == pytest.approx(surface.production_mixture())
    assert "mixture" in production_note(surface, "smooth")
    data = small_surface_data()
    for weight in data["controlled"]:
        weight["points"] = 7
    surface = Surface.from_dict(data)
    probability_A = production_policy(surface, "smooth").probability_A
    assert probability_A.sum() == pytest.approx(1.0)
    assert np.count_nonzero(probability_A) == surface.num_actions
    np.testing.assert_allclose(probability_A, interpolation(surface, surface.production)[0])
    assert "interpolation" in production_note(surface, "smooth")


def test_nearest_valuation_is_one_grid_point(surface: Surface) -> None:
    policy = production_policy(surface, "nearest").probability_A
    assert np.flatnonzero(policy).tolist() == [surface.nearest_production_action]
