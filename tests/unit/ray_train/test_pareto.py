from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ray_train.pareto import bulge, choose_candidates, hypervolume, lattice, non_dominated

POINTS = hnp.arrays(
    np.float64,
    st.tuples(st.integers(1, 30), st.integers(1, 4)),
    # few different values, so that ties and equal points are common
    elements=st.sampled_from([-0.02, -0.01, 0.0, 0.005, 0.01, 0.03, math.nan]),
)


def beats(one: np.ndarray, two: np.ndarray) -> bool:
    return bool((one >= two).all() and (one > two).any())


@settings(deadline=None)
@given(POINTS)
def test_frontier_points_are_mutually_non_dominated_and_the_others_are_beaten(points: np.ndarray) -> None:
    front = non_dominated(points)
    known = np.isfinite(points).all(axis=1)
    assert not (front & ~known).any()
    for i in np.flatnonzero(known):
        assert front[i] == (not any(beats(points[j], points[i]) for j in np.flatnonzero(known)))


@settings(deadline=None)
@given(POINTS)
def test_candidates_lie_on_the_frontier(points: np.ndarray) -> None:
    front = non_dominated(points)
    names = tuple(f"o{m}" for m in range(points.shape[1]))
    choices = choose_candidates(points, front, names)
    assert all(front[choice.point] for choice in choices)
    assert bool(choices) == bool(front.any())
    labels = {choice.label: choice.point for choice in choices}
    for m, name in enumerate(names):
        if choices:
            assert points[labels[f"{name}_leaning"], m] == points[front][:, m].max()
    safe = [i for i in np.flatnonzero(front) if (points[i] >= 0).all()]
    assert ("non_degrading" in labels) == bool(safe)
    if safe:
        best = max(points[i].min() for i in range(len(points)) if np.isfinite(points[i]).all())
        assert points[labels["non_degrading"]].min() == best


def test_knee_by_hand() -> None:
    # Normalised: (0, 1), (0.8, 0.7), (0.9, 0.3), (1, 0); sums minus 1: 0, 0.5, 0.2, 0.
    points = np.array([[0.0, 0.1], [0.8, 0.07], [0.9, 0.03], [1.0, 0.0], [0.5, 0.01]])
    front = non_dominated(points)
    assert front.tolist() == [True, True, True, True, False]
    np.testing.assert_allclose(bulge(points[front]) * math.sqrt(2), [0, 0.5, 0.2, 0], atol=1e-12)
    labels = {choice.label: choice.point for choice in choose_candidates(points, front, ("a", "b"))}
    assert labels == {"a_leaning": 3, "b_leaning": 0, "knee": 1, "non_degrading": 1}


def test_knee_of_three_objectives_is_the_bulge_of_the_simplex() -> None:
    points = np.array([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0], [0.5, 0.5, 0.5], [0.4, 0.4, 0.4]])
    labels = {c.label: c.point for c in choose_candidates(points, non_dominated(points), ("a", "b", "c"))}
    assert labels["knee"] == 3


def test_one_objective_has_no_knee() -> None:
    points = np.array([[0.01], [0.02]])
    labels = {
        choice.label: choice.point for choice in choose_candidates(points, non_dominated(points), ("a",))
    }
    assert labels == {"a_leaning": 1, "non_degrading": 1}


def test_no_point_can_be_valued() -> None:
    points = np.full((3, 2), np.nan)
    assert not non_dominated(points).any()
    assert choose_candidates(points, non_dominated(points), ("a", "b")) == []
    assert hypervolume(points) is None


def test_hypervolume_by_hand() -> None:
    # Two rectangles from the origin, 3 x 1 and 1 x 2, that share 1 x 1; the others add nothing.
    points = np.array([[3.0, 1.0], [1.0, 2.0], [-1.0, 5.0], [0.5, 0.5], [np.nan, 9.0]])
    assert hypervolume(points) == pytest.approx(3 + 2 - 1)
    assert hypervolume(np.array([[-1.0, 2.0]])) == 0.0


def test_lattice_of_two_objectives_is_the_papers() -> None:
    grid = lattice(2, 25)
    np.testing.assert_allclose(grid[:, 1], np.arange(25) / 24)
    np.testing.assert_allclose(lattice(2, 3, low=0.1, high=0.3)[:, 1], [0.1, 0.2, 0.3])
    assert lattice(1, 25).tolist() == [[1.0]]


@settings(deadline=None)
@given(st.integers(2, 6), st.integers(2, 200))
def test_lattices_lie_on_the_simplex_without_repetition(objectives: int, points: int) -> None:
    grid = lattice(objectives, points)
    np.testing.assert_allclose(grid.sum(axis=1), 1.0)
    assert (grid >= 0).all()
    assert len(np.unique(grid.round(9), axis=0)) == len(grid)
    sizes = [math.comb(h + objectives - 1, objectives - 1) for h in range(1, 400)]
    nearest = min(abs(size - points) for size in sizes)
    assert objectives == 2 or abs(len(grid) - points) == nearest


def test_candidates_are_chosen_by_the_lower_ends() -> None:
    # Point 0 has the largest estimate of a and is known badly; point 1 is safe; point 2 leans to b.
    lift = np.array([[0.05, -0.01], [0.04, 0.01], [-0.01, 0.03]])
    lower = np.array([[-0.05, -0.1], [0.02, 0.0], [-0.03, 0.02]])
    chosen = choose_candidates(lift, non_dominated(lift), ("a", "b"), lower)
    labels = {choice.label: choice.point for choice in chosen}
    assert labels["a_leaning"] == 1
    assert labels["b_leaning"] == 2
    assert labels["non_degrading"] == 1
    assert all("lower end" in choice.reason for choice in chosen)
    nothing_is_sure = choose_candidates(lift, non_dominated(lift), ("a", "b"), lower - 0.03)
    assert "non_degrading" not in {choice.label for choice in nothing_is_sure}


def test_without_bands_the_lifts_decide() -> None:
    lift = np.array([[0.05, -0.01], [0.04, 0.01]])
    unknown = np.full((2, 2), np.nan)
    assert choose_candidates(lift, non_dominated(lift), ("a", "b"), unknown) == choose_candidates(
        lift, non_dominated(lift), ("a", "b")
    )
