"""The damping of projection DR: what it leaves out, and intervals that know of it."""

from __future__ import annotations

import numpy as np
import pytest

from ray_train.estimators import ActionMixture, FloatArray, LoggedRows
from ray_train.estimators_basis import DECAY, polynomial_basis, utility_basis
from ray_train.estimators_reward import ModelShape, RewardModel
from ray_train.estimators_smooth import ProjectionDR, coefficient_noise
from ray_train.evaluation import Evaluation, evaluate
from ray_train.intervals import ClusterBootstrap, DeltaMethod, IntervalMethod
from tests.support.surfaces import grid_surface
from triton_models.surface import Surface

Z_95 = 1.96


def test_damping_leaves_the_mean_and_more_of_what_is_simple() -> None:
    basis = utility_basis(grid_surface([4, 5], ranges=(1, 9)), 4, 2)
    np.testing.assert_allclose(basis.damped_hat_AA(0.0), basis.hat_AA)
    damped = basis.damped_hat_AA(1e-3)
    np.testing.assert_allclose(damped.sum(axis=1), 1.0)
    kept_B = np.einsum("ab,ac,cb->b", basis.values_AB, damped, basis.values_AB) / len(damped)
    np.testing.assert_allclose(kept_B[0], 1.0)
    order = np.argsort(basis.order_B)
    assert (np.diff(kept_B[order]) <= 1e-12).all()
    assert kept_B.min() < 0.7


def test_the_scale_counts_more_degrees_than_a_ratio() -> None:
    basis = utility_basis(grid_surface([6, 6], ranges=(1, 9)), 4, 2)
    # Ratio degrees 0 to 4; 1/g with up to two of them; the square of 1/g.
    assert basis.order_B.tolist() == [0, 1, 2, 3, 4, 4, 5, 6, 7]


def test_the_interval_of_a_damped_coefficient_counts_its_noise_and_its_bias() -> None:
    basis, noise = utility_basis(grid_surface([4, 5], ranges=(1, 9)), 4, 2), 1e-3
    damped_B, doubted_B = (
        np.einsum("ab,ac,cb->b", basis.values_AB, hat, basis.values_AB) / len(hat)
        for hat in (basis.damped_hat_AA(noise), basis.doubted_hat_AA(noise))
    )
    prior_B = DECAY ** (2.0 * basis.order_B)
    error_B = damped_B**2 * noise + (1.0 - damped_B) ** 2 * prior_B
    np.testing.assert_allclose(doubted_B[1:] ** 2 * noise, error_B[1:])
    np.testing.assert_allclose(doubted_B[0], 1.0)


@pytest.fixture
def surface() -> Surface:
    return grid_surface([6, 6], ranges=(1, 9))


def valued(surface: Surface, seed: int, interval: IntervalMethod) -> tuple[Evaluation, FloatArray]:
    """A function drawn from the damping's prior and a log of it: all actions valued, and the truth."""
    basis, rng, rows = utility_basis(surface, 4, 2), np.random.default_rng(seed), 1200
    size = surface.num_actions
    coefficient_B = rng.normal(size=basis.size) * DECAY**basis.order_B
    reward_A = 1.0 + basis.values_AB[:, 1:] @ coefficient_B[1:]
    action_N = rng.integers(0, size, rows)
    logged = LoggedRows(
        user_N=np.arange(rows, dtype=np.int32),
        action_N=action_N.astype(np.int16),
        propensity_N=np.full(rows, 1.0 / size),
        outcome_NR=(reward_A[action_N] + rng.normal(0.0, 2.0, rows))[:, None].astype(np.float32),
    )
    model = RewardModel.fit(logged, polynomial_basis(surface, 0), ModelShape(products=()))
    estimator = ProjectionDR(model, basis, noise=coefficient_noise(model, logged, 1))
    policies = [ActionMixture(np.full(size, 1.0 / size)), *map(ActionMixture, np.eye(size))]
    return evaluate(estimator, logged, policies, interval), reward_A - 1.0


def test_intervals_are_as_wide_as_the_errors_under_the_prior(surface: Surface) -> None:
    error, width, covered = 0.0, 0.0, []
    for seed in range(100):
        result, truth_A = valued(surface, seed, DeltaMethod())
        bounds_A2 = result.bounds_PR2[1:, 0]
        error += ((result.lift_PR[1:, 0] - truth_A) ** 2).sum()
        width += ((np.diff(bounds_A2)[:, 0] / (2.0 * Z_95)) ** 2).sum()
        covered.append(((bounds_A2[:, 0] <= truth_A) & (truth_A <= bounds_A2[:, 1])).mean())
    # A width of the noise alone makes it 0.77. The lift is a ratio and this log short, hence not 95 %.
    assert width / error == pytest.approx(1.0, abs=0.12)
    assert np.mean(covered) > 0.90


@pytest.mark.parametrize("method", [DeltaMethod(), ClusterBootstrap(resamples=1000, seed=1)])
def test_intervals_lie_around_the_estimate(surface: Surface, method: IntervalMethod) -> None:
    result, _ = valued(surface, 1, method)
    for bounds_PR2 in (result.bounds_PR2, result.bands_PR2):
        half_A = np.diff(bounds_PR2[1:, 0])[:, 0] / 2.0
        np.testing.assert_array_less(
            np.abs(bounds_PR2[1:, 0].mean(axis=1) - result.lift_PR[1:, 0]), 0.25 * half_A
        )
