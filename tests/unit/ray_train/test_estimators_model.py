from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_train.estimators import (
    ActionMixture,
    ChosenActions,
    ChosenMixtures,
    Estimator,
    FloatArray,
    InversePropensity,
    LoggedRows,
    Policy,
    SelfNormalizedIPS,
)
from ray_train.estimators_basis import ActionBasis, interpolation, polynomial_basis, utility_basis
from ray_train.estimators_by_name import ESTIMATORS, MODELLED, Task, fit_model, make_estimator
from ray_train.estimators_mips import MarginalizedIPS, grid_cells, inside_cells
from ray_train.estimators_model import DirectMethod, DoublyRobust, ModelEstimator, ShrunkDR, SwitchDR
from ray_train.estimators_reward import ModelShape, RewardModel
from ray_train.estimators_smooth import (
    KernelDR,
    ProjectionDR,
    coefficient_noise,
    exact_share,
    kernel_smoother,
    noise_quantile,
    tuning_rows,
)
from ray_train.evaluation import evaluate
from ray_train.intervals import DeltaMethod
from tests.support.frontiers import planted_rows
from tests.support.reward_models import TableModel
from tests.support.surfaces import grid_surface, small_surface_data
from triton_models.errors import ConfigurationError
from triton_models.surface import Surface

# Three rows, three actions, q̂ = row number + action number; actions 0 1 2 with propensities ½ ¼ ¼.
ROWS = LoggedRows(
    user_N=np.arange(3, dtype=np.int32),
    action_N=np.array([0, 1, 2], dtype=np.int16),
    propensity_N=np.array([0.5, 0.25, 0.25]),
    outcome_NR=np.array([[1.0, 4.0], [0.0, np.nan], [1.0, 6.0]], dtype=np.float32),
)
MODEL = TableModel(np.add.outer(np.arange(3.0), np.arange(3.0))[:, :, None].repeat(2, axis=2))
# The policy takes actions 0 2 2: hits in rows 0 and 2, with weights 2 and 4.
POLICY = ChosenActions(np.array([0, 2, 2], dtype=np.int16))


def value(estimator: Estimator, policy: Policy = POLICY) -> list[float]:
    return evaluate(estimator, ROWS, [policy], None).value_PR[0].tolist()


def test_the_direct_method_by_hand() -> None:
    # q̂ of the chosen actions 0 3 4; of the metric the rows 0 and 2 count
    assert value(DirectMethod(MODEL)) == pytest.approx([7 / 3, 4 / 2])


def test_doubly_robust_by_hand() -> None:
    # residuals 1 - 0, -, 1 - 4 with weights 2, 0, 4: 7 + 2 - 12; metric residuals 4, 2: 4 + 8 + 8
    assert value(DoublyRobust(MODEL)) == pytest.approx([-3 / 3, 20 / 2])


def test_switch_and_shrinkage_by_hand() -> None:
    assert value(SwitchDR(MODEL, 3.0)) == pytest.approx([9 / 3, 12 / 2])  # the weight 4 is too large
    # 8 w / (w² + 8): 16 / 12 and 32 / 24, both 4/3
    assert value(ShrunkDR(MODEL, 8.0)) == pytest.approx([(7 + 4 / 3 - 4) / 3, (4 + 16 / 3 + 8 / 3) / 2])


def test_the_ends_of_the_knobs_are_dm_and_dr() -> None:
    dm, dr = value(DirectMethod(MODEL)), value(DoublyRobust(MODEL))
    assert value(SwitchDR(MODEL, 0.0)) == pytest.approx(dm)
    assert value(SwitchDR(MODEL, 4.0)) == pytest.approx(dr)
    assert value(ShrunkDR(MODEL, 0.0)) == pytest.approx(dm)
    assert value(ShrunkDR(MODEL, np.inf)) == pytest.approx(dr)


def test_inverse_propensity_by_hand() -> None:
    # (2 · 1 + 4 · 1) / 3 rows; metric (2 · 4 + 4 · 6) over the two rows that have it
    assert value(InversePropensity()) == pytest.approx([6 / 3, 32 / 2])


def test_hits_are_exact_matches_whatever_the_estimator() -> None:
    for estimator in (DirectMethod(MODEL), DoublyRobust(MODEL), InversePropensity(), SelfNormalizedIPS()):
        result = evaluate(estimator, ROWS, [POLICY], None)
        assert result.hits_P.tolist() == [2]
        assert result.effective_P[0] == pytest.approx(36 / 20)


@given(st.integers(0, 2**32 - 1))
def test_mixtures_of_one_action_are_that_action(seed: int) -> None:
    rng = np.random.default_rng(seed)
    chosen = rng.integers(3, size=3).astype(np.int16)
    one, other = ChosenActions(chosen), ChosenMixtures(chosen, np.eye(3))
    for estimator in (DoublyRobust(MODEL), InversePropensity(), SelfNormalizedIPS()):
        assert value(estimator, one) == pytest.approx(value(estimator, other), nan_ok=True)
    fixed = ActionMixture(np.eye(3)[1])
    assert value(DoublyRobust(MODEL), fixed) == pytest.approx(
        value(DoublyRobust(MODEL), ChosenActions(np.ones(3, dtype=np.int16)))
    )


@given(st.integers(0, 6), st.lists(st.integers(2, 6), min_size=1, max_size=3))
def test_bases_are_orthonormal_and_reproduce_themselves(degree: int, points: list[int]) -> None:
    surface = grid_surface(points)
    for basis in (polynomial_basis(surface, degree), utility_basis(surface, degree, min(degree, 2))):
        gram = basis.values_AB.T @ basis.values_AB / surface.num_actions
        np.testing.assert_allclose(gram, np.eye(basis.size), atol=1e-8)
        np.testing.assert_allclose(basis.hat_AA.sum(axis=1), 1.0, atol=1e-8)
        np.testing.assert_allclose(basis.hat_AA @ basis.values_AB, basis.values_AB, atol=1e-8)
    full = polynomial_basis(surface, sum(points))
    np.testing.assert_allclose(full.hat_AA, np.eye(surface.num_actions), atol=1e-6)


def test_a_basis_without_scale_knows_ratios_only(surface: Surface) -> None:
    basis = utility_basis(grid_surface([3, 3], ranges=(1, 9)), 2, 0)
    # Actions (1,1), (5,5), (9,9) have the ratio one.
    np.testing.assert_allclose(basis.values_AB[[0, 4, 8]], basis.values_AB[[0, 0, 0]], atol=1e-12)
    data = small_surface_data()
    data["controlled"][0]["minimum"] = -5
    assert "up to degree 4" in utility_basis(Surface.from_dict(data)).description


def test_a_utility_basis_has_what_the_utility_is_made_of() -> None:
    # Dividing the utility by the weights' geometric mean g leaves ratios and 1 / g: both are in the basis.
    surface = grid_surface([4, 5], ranges=(1, 9))
    log_AW = np.log(surface.actions)
    ratio_A, scale_A = log_AW[:, 1] - log_AW[:, 0], np.exp(-log_AW.mean(axis=1))
    hat_AA = utility_basis(surface, 4, 2).hat_AA
    for known_A in (ratio_A**4, scale_A**2, scale_A * ratio_A**2):
        np.testing.assert_allclose(hat_AA @ known_A, known_A, atol=1e-9)
    assert np.abs(hat_AA @ (scale_A * ratio_A**3) - scale_A * ratio_A**3).max() > 1e-3


def test_interpolation_is_exact_for_what_it_fits_and_on_the_grid() -> None:
    surface = grid_surface([9, 9], ranges=(1, 9))
    weights = np.array([[2.4, 6.5], [4.5, 3.5], surface.actions[11], [0.5, 20.0]])
    rows = interpolation(surface, weights)
    np.testing.assert_allclose(rows.sum(axis=1), 1.0)
    np.testing.assert_array_equal(rows[2], np.eye(81)[11])

    def known(w: FloatArray) -> FloatArray:
        return np.asarray(np.log(w[:, 1] / w[:, 0]) ** 3 + 1.0 / np.sqrt(w[:, 0] * w[:, 1]))

    clipped = np.clip(weights, 1.0, 9.0)
    np.testing.assert_allclose(rows @ known(surface.actions), known(clipped), atol=1e-9)
    assert np.abs(surface.mixture(weights[0]) @ known(surface.actions) - known(clipped)[0]) > 0.001


def test_interpolation_without_logarithms_is_exact_for_polynomials() -> None:
    data = small_surface_data()
    data["controlled"][0]["minimum"] = -5
    for weight in data["controlled"]:
        weight["points"] = 6
    surface = Surface.from_dict(data)
    weights = surface.actions[:1] * 0.4 + surface.actions[-1:] * 0.6

    def known(w: FloatArray) -> FloatArray:
        return np.asarray(1.0 + w[:, 0] * w[:, 1] + w[:, 1] ** 2)

    np.testing.assert_allclose(interpolation(surface, weights) @ known(surface.actions), known(weights))


@given(st.floats(0.1, 5.0))
def test_kernel_rows_sum_to_one_and_small_bandwidths_match_exactly(bandwidth: float) -> None:
    surface = grid_surface([3, 4])
    smoother = kernel_smoother(surface, bandwidth)
    np.testing.assert_allclose(smoother.sum(axis=1), 1.0)
    assert (smoother >= 0).all()
    if bandwidth <= 1:
        np.testing.assert_array_equal(smoother, np.eye(12))


def test_kernel_by_hand() -> None:
    # h = 2 steps: the next point counts 1 - 1/4, the point after it nothing
    smoother = kernel_smoother(grid_surface([3]), 2.0)
    np.testing.assert_allclose(smoother, [[4 / 7, 3 / 7, 0], [0.3, 0.4, 0.3], [0, 3 / 7, 4 / 7]])


def test_smoothing_with_nothing_to_blur_is_dr(surface: Surface) -> None:
    scored = planted_rows(surface, 3000, 1)
    policy = ChosenActions(scored.chosen_NP[:, 0])
    model = fit_model(surface, scored.rows)
    exact = evaluate(DoublyRobust(model), scored.rows, [policy], None).value_PR
    for estimator in (
        KernelDR(model, surface, 1.0),
        ProjectionDR(model, polynomial_basis(surface, 9)),
        ProjectionDR(model, utility_basis(surface, 1), exact=1.0),
    ):
        np.testing.assert_allclose(
            evaluate(estimator, scored.rows, [policy], None).value_PR, exact, rtol=1e-8
        )


def world(
    seed: int, rows: int, surface: Surface, basis: ActionBasis, *, uniform: bool
) -> tuple[LoggedRows, list[Policy], float]:
    """Rewards within a basis whose coefficients differ by user; a policy that depends on the user; its lift.

    Logging depends on the user too. Value: the mean over users of ``0.5 + φ(a)·θ_u``, made exact.
    """
    rng = np.random.default_rng(seed)
    users = rows // 4
    taste_U = np.random.default_rng(99).permutation(np.repeat([-1.0, 0.0, 1.0], users))[:users]
    user = np.repeat(np.arange(users, dtype=np.int32), 4)
    slope = 0.05 * basis.values_AB[:, 1] * np.minimum(1.0, 1.0 / np.abs(basis.values_AB[:, 1]).max()) * 3
    q_NA = 0.5 + taste_U[user, None] * slope + 0.02 * slope
    size = surface.num_actions
    tilt = np.ones(size) if uniform else np.linspace(0.5, 1.5, size)
    logging_NA = np.where(taste_U[user, None] > 0, tilt, tilt[::-1]) / tilt.sum()
    action = (rng.random((len(user), 1)) > logging_NA.cumsum(axis=1)).sum(axis=1).clip(0, size - 1)
    reward = rng.random(len(user)) < q_NA[np.arange(len(user)), action]
    best = np.where(taste_U[user] > 0, np.argmax(slope), np.argmin(slope)).astype(np.int16)
    logged = LoggedRows(
        user_N=user,
        action_N=action.astype(np.int16),
        propensity_N=logging_NA[np.arange(len(user)), action],
        outcome_NR=np.stack([reward, reward], axis=1).astype(np.float32),
        feature_NF=rng.normal(size=(len(user), 2)).astype(np.float32)
        + taste_U[user, None].astype(np.float32),
    )
    middle = ActionMixture(np.full(size, 1.0 / size))
    truth = q_NA[np.arange(len(user)), best].mean() / q_NA.mean() - 1.0
    return logged, [middle, ChosenActions(best)], float(truth)


@pytest.mark.parametrize("uniform", [True, False])
@pytest.mark.parametrize("name", ["ips", "snips", "dr", "projection"])
def test_intervals_of_unbiased_estimators_cover(surface: Surface, name: str, uniform: bool) -> None:
    # 200 logs, nominal 95 %: fewer than 179 or more than 198 covered has a chance below 1 in 1,000.
    basis = utility_basis(surface, 2, 0)
    covered, error = 0, []
    for seed in range(200):
        rows, policies, truth = world(seed, 1600, surface, basis, uniform=uniform)
        estimator = small_estimator(name, rows, surface, basis)
        result = evaluate(estimator, rows, policies, DeltaMethod())
        low, high = result.bounds_PR2[1, 0]
        covered += low <= truth <= high
        error.append(result.lift_PR[1, 0] - truth)
    assert 179 <= covered <= 198
    assert abs(np.mean(error)) < 4 * np.std(error) / np.sqrt(len(error))


def small_estimator(name: str, rows: LoggedRows, surface: Surface, basis: ActionBasis) -> Estimator:
    if name == "ips":
        return InversePropensity()
    if name == "snips":
        return SelfNormalizedIPS()
    shape = ModelShape(products=((0, 0), (1, 0), (0, 1), (1, 1)))
    model = RewardModel.fit(rows, basis, shape)
    return DoublyRobust(model) if name == "dr" else ProjectionDR(model, basis)


def test_the_projection_needs_fewer_rows(surface: Surface) -> None:
    basis = utility_basis(surface, 2, 0)
    spread = {}
    for name in ("snips", "dr", "projection"):
        lifts = []
        for seed in range(60):
            rows, policies, _ = world(seed, 1600, surface, basis, uniform=True)
            estimator = small_estimator(name, rows, surface, basis)
            lifts.append(evaluate(estimator, rows, policies, None).lift_PR[1, 0])
        spread[name] = np.std(lifts)
    assert spread["projection"] < 0.9 * spread["dr"] < 0.95 * spread["snips"]


def test_exact_matching_comes_in_where_the_projection_is_biased(surface: Surface) -> None:
    rows, policies, _ = world(3, 6000, surface, polynomial_basis(surface, 2), uniform=True)
    model = RewardModel.fit(rows, polynomial_basis(surface, 2), ModelShape(products=()))
    blunt, fitting = (ProjectionDR(model, utility_basis(surface, d, 0)) for d in (0, 2))
    assert exact_share(blunt, rows, policies, 2) > 0.5
    assert exact_share(fitting, rows, policies, 2) < exact_share(blunt, rows, policies, 2)


def test_noise_is_no_reason_for_exact_matching(surface: Surface) -> None:
    share = []
    for seed in range(40):
        rows, policies, _ = world(seed, 1600, surface, utility_basis(surface, 2, 0), uniform=True)
        model = RewardModel.fit(rows, polynomial_basis(surface, 2), ModelShape(products=()))
        share.append(exact_share(ProjectionDR(model, utility_basis(surface, 2, 0)), rows, policies, 2))
    assert np.count_nonzero(share) <= 2


def test_the_noise_quantile_is_that_of_a_sum_of_squares() -> None:
    rng = np.random.default_rng(4)
    root = rng.normal(size=(5, 5))
    drawn = ((rng.normal(size=(200_000, 5)) @ root.T) ** 2).sum(axis=1)
    for share in (0.5, 0.95):
        assert (drawn <= noise_quantile(root @ root.T, share)).mean() == pytest.approx(share, abs=0.03)
    assert noise_quantile(np.zeros((2, 2)), 0.95) == 0.0


def test_the_noise_of_a_coefficient_by_hand(surface: Surface) -> None:
    # Without a model's help a coefficient over n uniform rows has the variance E[(r - q̂)²] / n.
    rows, _, _ = world(1, 4000, surface, utility_basis(surface, 2, 0), uniform=True)
    model = RewardModel.fit(rows, polynomial_basis(surface, 1), ModelShape(products=()))
    value = rows.outcome_NR.mean()
    expected = value * (1 - value) / len(rows) / value**2
    assert coefficient_noise(model, rows, 2) == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("uniform", [True, False])
def test_cells_of_two_points_value_the_average_of_a_cell(surface: Surface, uniform: bool) -> None:
    cells = grid_cells(surface, 2)
    rows, policies, _ = world(2, 40_000, surface, utility_basis(surface, 2, 0), uniform=uniform)
    # The reward is the cell's number: only the cell matters, so MIPS is unbiased.
    outcome = np.repeat((cells[rows.action_N] / 10.0)[:, None], 2, axis=1).astype(np.float32)
    known = replace(rows, outcome_NR=outcome)
    estimator = MarginalizedIPS(cells, inside_cells(cells, known, surface.num_actions))
    result = evaluate(estimator, known, policies, None)
    assert isinstance(policies[1], ChosenActions)
    truth = (cells[policies[1].chosen_N] / 10.0).mean()
    assert result.value_PR[1, 0] == pytest.approx(truth, rel=0.05)
    # Cells count instead of actions: fewer and smaller weights.
    assert result.hits_P[1] > evaluate(InversePropensity(), known, policies, None).hits_P[1]


def test_cells_by_hand() -> None:
    assert grid_cells(grid_surface([3, 2]), 2).tolist() == [0, 0, 0, 0, 1, 1]
    assert grid_cells(grid_surface([3]), 1).tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="at least 1"):
        grid_cells(grid_surface([3]), 0)
    with pytest.raises(ValueError, match="sum to 1"):
        MarginalizedIPS(np.array([0, 0, 1]), np.array([0.5, 0.4, 1.0]))


def test_a_rows_model_never_saw_its_user(surface: Surface) -> None:
    # One user's rewards are changed: nothing may change in what the model says about that user.
    scored = planted_rows(surface, 2000, 1)
    basis = polynomial_basis(surface, 2)
    mine = scored.rows.user_N == 7
    outcome = scored.rows.outcome_NR.copy()
    outcome[mine] = 1 - outcome[mine]
    changed = LoggedRows(
        user_N=scored.rows.user_N,
        action_N=scored.rows.action_N,
        propensity_N=scored.rows.propensity_N,
        outcome_NR=outcome,
    )
    shape = ModelShape(products=())
    one, two = (RewardModel.fit(rows, basis, shape) for rows in (scored.rows, changed))
    np.testing.assert_array_equal(one.coefficients(scored.rows)[mine], two.coefficients(changed)[mine])
    assert (one.coefficients(scored.rows)[~mine] != two.coefficients(changed)[~mine]).any()


def test_outcomes_with_nulls_are_fitted_on_the_rows_that_have_them(surface: Surface) -> None:
    scored = planted_rows(surface, 4000, 1)
    basis = polynomial_basis(surface, 1)
    outcome = scored.rows.outcome_NR.copy()
    outcome[::3, 2] = np.nan
    rows = LoggedRows(
        user_N=scored.rows.user_N,
        action_N=scored.rows.action_N,
        propensity_N=scored.rows.propensity_N,
        outcome_NR=outcome,
    )
    known = rows.take(~np.isnan(outcome[:, 2]))
    shape = ModelShape(products=())
    one, two = (
        RewardModel.fit(logged, basis, shape).coefficients(logged.take(slice(0, 1)))
        for logged in (rows, known)
    )
    np.testing.assert_allclose(one[0, :, 2], two[0, :, 2], atol=1e-9)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_estimator_is_found_by_its_name_and_finds_the_planted_lift(surface: Surface, name: str) -> None:
    scored = planted_rows(surface, 40_000, 1, effect=0.1)
    middle = ActionMixture(np.full(surface.num_actions, 1 / surface.num_actions))
    policies: list[Policy] = [middle, ChosenActions(scored.chosen_NP[:, 0])]
    taste = np.where(scored.rows.user_N % 2 == 0, 1.0, -1.0)[:, None].astype(np.float32)
    features = np.repeat(taste, 60, axis=1)  # as wide as the network's coefficients and the digest
    rows = LoggedRows(
        user_N=scored.rows.user_N,
        action_N=scored.rows.action_N,
        propensity_N=scored.rows.propensity_N,
        outcome_NR=scored.rows.outcome_NR,
        feature_NF=features,
    )
    estimator = make_estimator(name, Task(surface=surface, rows=rows, policies=policies))
    assert estimator.name == name
    assert estimator.formula
    assert type(estimator).__doc__
    lift = evaluate(estimator, rows, policies, None).lift_PR[1, :2]
    # MIPS values the average of a cell of actions, which is less than the best action of it.
    assert lift == pytest.approx([0.2, 0.2], abs=0.1 if name == "mips" else 0.06)
    assert isinstance(estimator, ModelEstimator) == (name in MODELLED)


def test_strange_names_are_refused(surface: Surface) -> None:
    scored = planted_rows(surface, 50, 1)
    with pytest.raises(ConfigurationError, match="must be one of reward_at_hit"):
        make_estimator("magic", Task(surface=surface, rows=scored.rows, policies=[]))
    with pytest.raises(ConfigurationError, match="ridge or network"):
        fit_model(surface, scored.rows, "forest")
    with pytest.raises(ConfigurationError, match="no values of the run's network"):
        fit_model(surface, scored.rows, "network")
    for bad in (lambda: SwitchDR(MODEL, -1.0), lambda: ShrunkDR(MODEL, float("nan"))):
        with pytest.raises(ValueError, match="at least 0"):
            bad()
    with pytest.raises(ValueError, match="positive"):
        KernelDR(MODEL, surface, 0.0)
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        ProjectionDR(MODEL, MODEL.basis, exact=2.0)


def test_knobs_are_set_from_an_even_share_of_the_users_where_rows_are_many(
    surface: Surface, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, policies, _ = world(3, 16_000, surface, polynomial_basis(surface, 2), uniform=True)
    model = RewardModel.fit(rows, polynomial_basis(surface, 2), ModelShape(products=()))
    blunt = ProjectionDR(model, utility_basis(surface, 0, 0))
    noise, share = coefficient_noise(model, rows, 2), exact_share(blunt, rows, policies, 2)
    monkeypatch.setattr("ray_train.estimators_smooth.MOST_TUNING_ROWS", 8000)
    picked = tuning_rows(rows)
    assert picked.sum() == pytest.approx(8000, abs=40)
    assert len(np.unique(rows.user_N[picked] % 5)) == 5
    # Told from half of the rows, what all of them would say.
    assert coefficient_noise(model, rows, 2) == pytest.approx(noise, rel=0.1)
    assert exact_share(blunt, rows, policies, 2) == pytest.approx(share, abs=0.25)
