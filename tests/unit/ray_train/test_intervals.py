from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_train.estimators import ChosenActions, LoggedRows, SelfNormalizedIPS
from ray_train.evaluation import Evaluation, evaluate, user_chunks
from ray_train.intervals import (
    ClusterBootstrap,
    DeltaMethod,
    IntervalMethod,
    _poisson_table,
    max_normal,
    relative_lifts,
)


def cluster_world(
    seed: int, *, users: int = 600, spread: float = 0.8
) -> tuple[LoggedRows, list[ChosenActions]]:
    """Two actions logged with ½ each, 1 to 9 rows a user, and users who differ: rows are not independent.

    Action 0 earns 0.5 on average over users, action 1 earns 0.6: the lift of action 1 is exactly 0.2, as
    the number of a user's rows has nothing to do with the level.
    """
    rng = np.random.default_rng(seed)
    user = np.repeat(np.arange(users), rng.integers(1, 10, size=users)).astype(np.int32)
    level = rng.uniform(-spread / 2, spread / 2, size=users)[user]
    action = rng.integers(2, size=len(user)).astype(np.int16)
    reward = rng.random(len(user)) < 0.5 + 0.1 * action + level * np.where(action, 0.8, 1.0)
    rows = LoggedRows(
        user_N=user,
        action_N=action,
        propensity_N=np.full(len(user), 0.5),
        outcome_NR=reward[:, None].astype(np.float32),
    )
    return rows, [ChosenActions(np.full(len(user), a, dtype=np.int16)) for a in (0, 1)]


def lift(world: tuple[LoggedRows, list[ChosenActions]], method: IntervalMethod) -> Evaluation:
    return evaluate(SelfNormalizedIPS(), *world, method)


def test_poisson_counts_have_mean_and_variance_one() -> None:
    counts = _poisson_table().astype(np.float64)
    assert counts.mean() == pytest.approx(1.0, abs=1e-3)
    assert counts.var() == pytest.approx(1.0, abs=2e-3)
    assert (counts == 0).mean() == pytest.approx(np.exp(-1), abs=1e-4)


def test_relative_lift_by_hand() -> None:
    # Baseline 2/4, policies 3/4 and 1/4 and one that was never taken.
    sums = np.array([[[2.0, 4.0]], [[3.0, 4.0]], [[1.0, 4.0]], [[0.0, 0.0]]])
    assert relative_lifts(sums)[:3, 0].tolist() == [0.0, 0.5, -0.5]
    assert np.isnan(relative_lifts(sums)[3, 0])


def test_production_against_itself_is_zero_without_doubt() -> None:
    world = cluster_world(0)
    for method in (ClusterBootstrap(resamples=50, seed=0), DeltaMethod()):
        np.testing.assert_allclose(lift(world, method).bounds_PR2[0], 0.0, atol=1e-7)


def test_bootstrap_and_delta_method_agree_on_a_large_sample() -> None:
    world = cluster_world(1, users=4000)
    one = lift(world, ClusterBootstrap(resamples=2000, seed=0)).bounds_PR2[1, 0]
    two = lift(world, DeltaMethod()).bounds_PR2[1, 0]
    width = two[1] - two[0]
    np.testing.assert_allclose(one, two, atol=0.08 * width)


@pytest.mark.parametrize("kind", ["bootstrap", "delta"])
def test_intervals_cover_the_truth(kind: str) -> None:
    # 200 worlds, nominal 95 %: fewer than 179 or more than 198 covered has a chance below 1 in 1,000.
    covered = 0
    for seed in range(200):
        method = ClusterBootstrap(resamples=400, seed=seed) if kind == "bootstrap" else DeltaMethod()
        low, high = lift(cluster_world(1000 + seed, users=300), method).bounds_PR2[1, 0]
        covered += low <= 0.2 <= high
    assert 179 <= covered <= 198


def test_rows_that_repeat_within_a_user_teach_nothing() -> None:
    # The same rows four times over, still one user each: an interval by rows would be half as wide.
    rows, policies = cluster_world(2)
    index = np.repeat(np.arange(len(rows)), 4)
    repeated = (rows.take(index), [policy.take(index) for policy in policies])
    for make in (lambda: ClusterBootstrap(resamples=300, seed=3), DeltaMethod):
        once, four = (lift(world, make()).bounds_PR2[1, 0] for world in ((rows, policies), repeated))
        np.testing.assert_allclose(once, four, rtol=0.15)


def test_pairing_removes_what_both_policies_share() -> None:
    # 2 % of the choices differ; unpaired, the interval would be as wide as that of two other samples.
    rng = np.random.default_rng(5)
    rows, (zero, _) = cluster_world(3)
    almost = ChosenActions(np.where(rng.random(len(rows)) < 0.02, 1, zero.chosen_N).astype(np.int16))
    narrow = lift((rows, [zero, almost]), DeltaMethod()).bounds_PR2[1, 0]
    wide = lift(cluster_world(3), DeltaMethod()).bounds_PR2[1, 0]
    assert narrow[1] - narrow[0] < 0.35 * (wide[1] - wide[0])


def test_equal_seeds_give_equal_intervals_and_others_do_not() -> None:
    world = cluster_world(4)
    one, two, three = (lift(world, ClusterBootstrap(resamples=100, seed=s)).bounds_PR2 for s in (7, 7, 8))
    np.testing.assert_array_equal(one, two)
    assert (one[1] != three[1]).any()


def test_too_few_hits_give_no_interval() -> None:
    rows, (zero, one) = cluster_world(5)
    once = zero.chosen_N.copy()
    once[:] = 5
    hit = int(np.flatnonzero(rows.action_N == 1)[0])
    once[hit] = 1  # one hit only: it is missing from 37 % of the resamples
    result = lift((rows, [zero, ChosenActions(once)]), ClusterBootstrap(resamples=200, seed=0))
    assert result.hits_P[1] == 1
    assert np.isfinite(result.lift_PR[1, 0])
    assert np.isnan(result.bounds_PR2[1, 0]).all()
    assert one is not None


@pytest.mark.parametrize("method", [ClusterBootstrap(resamples=20, seed=0), DeltaMethod()])
def test_no_hits_give_no_interval(method: IntervalMethod) -> None:
    rows, (zero, _) = cluster_world(6)
    nobody = ChosenActions(np.full(len(rows), 9, dtype=np.int16))
    assert np.isnan(lift((rows, [zero, nobody]), method).bounds_PR2[1]).all()


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="confidence"):
        DeltaMethod(confidence=1.0)
    with pytest.raises(ValueError, match="at least 2 resamples"):
        ClusterBootstrap(resamples=1, seed=0)


@settings(deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=60), st.integers(1, 20))
def test_chunks_cover_all_rows_and_cut_no_user(users: list[int], size: int) -> None:
    user_N = np.sort(np.array(users, dtype=np.int32))
    chunks = list(user_chunks(user_N, size))
    assert [i for part in chunks for i in range(part.start, part.stop)] == list(range(len(users)))
    owners = [set(user_N[part].tolist()) for part in chunks]
    assert sum(len(owner) for owner in owners) == len(set(users))


def test_chunking_changes_no_estimate() -> None:
    world = cluster_world(7)
    whole, parts = (evaluate(SelfNormalizedIPS(), *world, DeltaMethod(), chunk_rows=n) for n in (10**6, 100))
    np.testing.assert_allclose(whole.value_PR, parts.value_PR, rtol=1e-12)
    np.testing.assert_allclose(whole.bounds_PR2, parts.bounds_PR2, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(whole.hits_P, parts.hits_P)


def test_unsorted_rows_are_refused() -> None:
    rows, policies = cluster_world(8)
    back = np.arange(len(rows))[::-1]
    with pytest.raises(ValueError, match="sorted by user"):
        evaluate(SelfNormalizedIPS(), rows.take(back), [policy.take(back) for policy in policies], None)


def many_policies(seed: int, users: int = 400) -> tuple[LoggedRows, list[ChosenActions]]:
    """Policies between action 0 and action 1 of :func:`cluster_world`: user-independent shares of 1."""
    rows, (zero, one) = cluster_world(seed, users=users)
    rng = np.random.default_rng(seed)
    draw = rng.random(len(rows))
    shares = np.linspace(0.1, 1.0, 10)
    return rows, [zero, *(ChosenActions((draw < share).astype(np.int16)) for share in shares), one]


@pytest.mark.parametrize("kind", ["bootstrap", "delta"])
def test_bands_cover_all_lifts_at_once(kind: str) -> None:
    # 200 worlds, nominal 95 %; a policy that takes action 1 with share q has the lift 0.2 q exactly.
    truth = np.array([0.0, *(0.2 * np.linspace(0.1, 1.0, 10)), 0.2])
    together = alone = 0
    for seed in range(200):
        method = ClusterBootstrap(resamples=300, seed=seed) if kind == "bootstrap" else DeltaMethod()
        result = lift(many_policies(5000 + seed), method)
        inside = (result.bands_PR2[:, 0, 0] - 1e-9 <= truth) & (truth <= result.bands_PR2[:, 0, 1] + 1e-9)
        together += bool(inside.all())
        single = (result.bounds_PR2[:, 0, 0] - 1e-9 <= truth) & (truth <= result.bounds_PR2[:, 0, 1] + 1e-9)
        alone += bool(single.all())
        assert result.critical > 1.9
    assert 179 <= together <= 199
    assert alone < together


def test_the_critical_value_by_known_cases() -> None:
    # One look: z. Independent looks: Šidák. Equal looks: one look.
    assert max_normal(np.eye(1), 0.95) == pytest.approx(1.96, abs=0.03)
    assert max_normal(np.eye(10), 0.95) == pytest.approx(2.80, abs=0.04)
    assert max_normal(np.ones((10, 10)), 0.95) == pytest.approx(1.96, abs=0.03)


def test_very_many_lifts_fall_back_on_bonferroni(monkeypatch: pytest.MonkeyPatch) -> None:
    world = many_policies(1)
    joint = lift(world, DeltaMethod()).critical
    monkeypatch.setattr("ray_train.intervals.MOST_JOINT", 3)
    bonferroni = lift(world, DeltaMethod()).critical
    assert bonferroni == pytest.approx(2.84, abs=0.02)  # 11 looks
    assert joint < bonferroni
