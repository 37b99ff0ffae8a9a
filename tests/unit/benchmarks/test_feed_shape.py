"""The world has the shape that the paper reports; every bound here was known before the test was written."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from benchmarks.feed import config as c
from benchmarks.feed.truth import Truth, find_truth
from benchmarks.feed.world import World
from triton_models.errors import SimulationError

ALPHAS = (0.1, 0.17, 0.21, 0.24, 0.3, 0.4)


def lam(alpha: float) -> np.ndarray:
    return np.array([1 - alpha, alpha])


@pytest.fixture(scope="module")
def truth(world: World) -> Truth:
    """500 requests in the middle of the log, 12 redraws of the candidates."""
    return find_truth(world, 3000, 500, draws=12)


def test_the_objectives_are_in_tension_over_the_grid(truth: Truth) -> None:
    repin, p2p = (truth.static[:, m].reshape(7, 7) for m in (0, 1))
    assert (np.diff(p2p, axis=1) > 0).all() and (np.diff(repin, axis=1) < 0).all()  # more p2p weight
    assert (np.diff(p2p, axis=0) < 0).all() and (np.diff(repin, axis=0) > 0).all()  # more repin weight
    lowest, highest = truth.static[:, :2].min(axis=0), truth.static[:, :2].max(axis=0)
    assert (highest / lowest > 1.5).all()


def test_production_is_well_tuned_as_a_static_vector(truth: Truth) -> None:
    """Near α = 0.2, as in the paper, no static vector beats it: the gain must come from personalization."""
    at = lam(0.2)
    best = truth.static[truth.best_static(at), :2] @ at
    assert abs(best / (truth.production[:2] @ at) - 1) < 0.01


@pytest.mark.parametrize("alpha", ALPHAS[1:])
def test_the_best_request_level_policy_is_ahead_of_the_best_static_vector(truth: Truth, alpha: float) -> None:
    assert 0.03 < truth.gain(lam(alpha)) < 0.08


def test_some_operating_point_improves_both_objectives(truth: Truth) -> None:
    lifts = [truth.best(lam(alpha))[:2] / truth.production[:2] - 1 for alpha in ALPHAS]
    assert any((lift > 0.01).all() for lift in lifts)
    assert all(later[1] > earlier[1] for earlier, later in pairwise(lifts))
    assert all(later[0] < earlier[0] for earlier, later in pairwise(lifts))


def test_core_responds_least_to_alpha_and_casual_most(truth: Truth) -> None:
    response = {}
    for cohort in c.COHORTS:
        part = truth.select(truth.cohort == cohort)
        lifts = np.array([part.best(lam(alpha))[:2] / part.production[:2] - 1 for alpha in (0.1, 0.4)])
        response[cohort] = np.abs(lifts[1] - lifts[0])
    for objective in (0, 1):
        core, casual, rest = (response[cohort][objective] for cohort in c.COHORTS)
        assert core < rest < casual


def test_cohorts_share_the_traffic(world: World) -> None:
    share = {name: (world.requests(0, 6000).cohort == name).mean() for name in c.COHORTS}
    assert share["core"] > 0.25 and share["casual"] > 0.3 and share["rest"] > 0.04


def test_most_requests_have_at_most_one_engagement(world: World) -> None:
    counts, _ = world.sample(world.requests(0, 6000))
    assert ((counts <= 1).mean(axis=0) > 0.8).all()  # of each kind
    engaged = (counts > 0).mean(axis=0)
    assert 0.15 < engaged[0] < 0.55 and 0.15 < engaged[1] < 0.55


def contribution(world: World, weights: np.ndarray) -> np.ndarray:
    """Head contribution ``c_i = ‖w_i h_i‖ / Σ_j ‖w_j h_j‖`` over served items (Eq. 11)."""
    batch = world.requests(2000, 1000)
    served = world.slates(batch, weights)
    scores = np.take_along_axis(world.head_scores(batch), served[:, :, None], axis=1)
    full = np.concatenate([weights, world.surface.fixed_weights])
    norm = np.linalg.norm((scores * full).reshape(-1, 5), axis=0)
    return norm / norm.sum()


def test_the_controlled_heads_carry_most_of_production_utility(world: World) -> None:
    assert 0.8 < contribution(world, world.surface.production)[:2].sum() < 0.95
    # Eq. 11 in the paper: from under 1 % of utility at p2p weight 1 to nearly 50 % at 30
    assert contribution(world, np.array([91.6, 1.0]))[1] < 0.03
    assert 0.4 < contribution(world, np.array([91.6, 30.0]))[1] < 0.6


def test_the_ranker_is_calibrated_over_what_it_shows(world: World) -> None:
    batch = world.requests(0, 6000)
    shown = world.slates(batch, world.surface.production)
    predicted = np.take_along_axis(world.head_scores(batch), shown[:, :, None], axis=1)
    chance = world.slot_probabilities(batch, shown)  # examination · satiation · true probability
    topic = world.items.topic[np.take_along_axis(batch.candidates, shown, axis=1)]
    seen = np.array([[(row[:j] == row[j]).sum() for j in range(len(row))] for row in topic])
    exposure = world.examination * world.config.behaviour.satiation**seen
    actual = (chance / exposure[:, :, None]).mean(axis=(0, 1))
    np.testing.assert_allclose(actual / predicted.mean(axis=(0, 1)), 1.0, atol=0.03)


def test_the_ranker_is_blind_to_intent_and_the_history_is_not(world: World) -> None:
    batch = world.requests(0, 6000)
    right = (world.intent_posterior(batch).argmax(axis=1) == batch.intent).mean()
    guess = (batch.prior.argmax(axis=1) == batch.intent).mean()
    assert guess < 0.6 and right > 0.8
    # calibrated posterior: the chance it gives to its choice is how often it is right
    assert abs(world.intent_posterior(batch).max(axis=1).mean() - right) < 0.02


def test_position_bias_and_satiation_lower_engagement(world: World) -> None:
    batch = world.requests(0, 500)
    same = np.zeros((500, 25), dtype=np.int32)  # one item in every slot: one topic, most satiated
    chance = world.slot_probabilities(batch, same)[:, :, 1]
    np.testing.assert_allclose(chance[:, 1] / chance[:, 0], 2**-0.45 * 0.8, rtol=1e-5)
    assert (np.diff(chance, axis=1) < 0).all()


def test_behaviour_drifts_over_the_days(world: World) -> None:
    ratio = [world._latents(world.requests(first, 300)).ratio_nSH for first in (0, 5700)]
    change = ratio[1].mean(axis=(0, 1)) / ratio[0].mean(axis=(0, 1))
    assert change[0] < 0.99 and change[1] > 1.02


def test_policy_values_agree_with_each_other(truth: Truth) -> None:
    at = lam(0.25)
    static = truth.best_static(at)
    np.testing.assert_allclose(truth.policy(np.full(500, static)), truth.static[static])
    optimistic = truth.policy(truth.best_actions(at))[:2] @ at
    honest = truth.best(at)[:2] @ at
    assert honest <= optimistic


@pytest.mark.parametrize(("count", "draws"), [(0, 2), (5, 3), (5, 0)])
def test_impossible_truths_are_refused(world: World, count: int, draws: int) -> None:
    with pytest.raises(SimulationError, match="even draws"):
        find_truth(world, 0, count, draws=draws)
