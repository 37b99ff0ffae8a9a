from __future__ import annotations

import json
import math

import numpy as np
import pytest

from ray_train.drift import DayFigures, DayTotals, compare, holm, student_tail
from ray_train.estimators_basis import polynomial_basis
from triton_models.surface import Surface


def days(
    surface: Surface,
    seed: int,
    *,
    number: int = 10,
    rows: int = 4000,
    slope: float = 0.1,
    level: float = 0.5,
    shift: float = 0.0,
) -> DayFigures:
    """Days whose level wobbles by 1 %; the reward answers to the first weight with the slope."""
    rng = np.random.default_rng(seed)
    basis = polynomial_basis(surface, 1)
    totals = DayTotals(basis)
    for day in range(number):
        action = rng.integers(surface.num_actions, size=rows)
        wobble = 1 + 0.01 * rng.normal()
        value = level * wobble + slope * (surface.normalized_actions[action, 0] - 0.5)
        reward = (rng.random((rows, 2)) < value[:, None]).astype(np.float32)
        totals.add(
            np.full(rows, np.datetime64("2026-01-01") + day),
            action,
            np.full(rows, 1 / surface.num_actions),
            reward,
            rng.normal(shift, 1.0, size=(rows, 3)),
        )
    return totals.figures()


OBJECTIVES = ("repin", "p2p")


def test_daily_figures_by_hand(surface: Surface) -> None:
    totals = DayTotals(polynomial_basis(surface, 1))
    day = np.array(["2026-01-01", "2026-01-01", "2026-01-02"], dtype="datetime64[D]")
    reward = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    totals.add(
        day, np.array([0, 8, 4]), np.array([1 / 9, 1 / 18, 1 / 9]), reward, np.array([[1.0], [3.0], [5.0]])
    )
    figures = totals.figures()
    assert figures.rows_D.tolist() == [2, 1]
    # 1 / (9 p): weights 1, 2, 1
    np.testing.assert_allclose(figures.level_DM, [[3 / 2, 2 / 2], [0, 1]])
    np.testing.assert_allclose(figures.state_DF[:, 0], [2, 5])
    end = math.sqrt(1.5)  # the linear function at the end of three points
    np.testing.assert_allclose(np.abs(figures.contrast_DBM[0, :, 0]), [end / 2, end / 2])


def test_the_same_world_is_quiet_and_its_false_alarms_are_few(surface: Surface) -> None:
    alarms = 0
    for seed in range(100):
        drift = compare(
            days(surface, seed, rows=400), days(surface, 1000 + seed, rows=400, number=7), OBJECTIVES
        )
        alarms += bool(drift.changes)
    assert alarms <= 5  # family-wise 1 %


def test_a_turned_contrast_invalidates_the_policy(surface: Surface) -> None:
    drift = compare(days(surface, 1), days(surface, 2, slope=-0.1, number=7), OBJECTIVES)
    assert drift.invalidates
    assert {change.name for change in drift.changes if change.kind == "contrast"} >= {
        "repin 2"
    } or drift.changes
    assert "use static weights until a run is fitted" in drift.sentence()


def test_more_reward_or_other_users_are_told_and_do_not_invalidate(surface: Surface) -> None:
    drift = compare(days(surface, 1), days(surface, 2, level=0.6, shift=0.5, number=7), OBJECTIVES)
    assert not drift.invalidates
    assert {change.kind for change in drift.changes} == {"level", "state"}
    assert "still fits" in drift.sentence()


def test_a_significant_but_tiny_change_does_not_count(surface: Surface) -> None:
    drift = compare(days(surface, 1, rows=40_000), days(surface, 2, rows=40_000, shift=0.05), OBJECTIVES)
    assert not drift.changes
    assert "no change in" in drift.sentence()


def test_too_few_days_say_so(surface: Surface) -> None:
    drift = compare(days(surface, 1), days(surface, 2, number=2), OBJECTIVES)
    assert not drift.enough
    assert "too few days" in drift.sentence()
    with pytest.raises(ValueError, match="no rows"):
        DayTotals(polynomial_basis(surface, 1)).figures()


def test_figures_are_read_back_as_they_were_written(surface: Surface) -> None:
    figures = days(surface, 1, number=3, rows=100)
    back = DayFigures.from_dict(json.loads(json.dumps(figures.to_dict())))
    for name, values in vars(figures).items():
        np.testing.assert_array_equal(getattr(back, name), values)
    assert back.rows_D.dtype == np.int64
    with pytest.raises(ValueError, match="expected contrast_DBM"):
        DayFigures.from_dict({"rows_D": [1]})


@pytest.mark.parametrize(
    ("t", "freedom", "p"),
    [(12.706, 1, 0.05), (2.776, 4, 0.05), (2.228, 10, 0.05), (4.587, 10, 0.001), (0, 7, 1)],
)
def test_student_tail_of_the_tables(t: float, freedom: float, p: float) -> None:
    assert student_tail(t, freedom) == pytest.approx(p, rel=2e-3)


def test_holm_by_hand() -> None:
    # 0.01 · 3, max(0.03, 0.02 · 2), max(0.04, 0.9)
    assert holm([0.9, 0.01, 0.02]) == pytest.approx([0.9, 0.03, 0.04])
