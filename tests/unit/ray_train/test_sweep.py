from __future__ import annotations

import json
import logging
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from ray_train.estimators import LoggedRows
from ray_train.pareto import non_dominated
from ray_train.production import production_policy
from ray_train.sweep import ScoredRows, build_frontier
from ray_train.sweep_settings import SweepSettings
from tests.support.frontiers import planted_rows, run_reference, window
from tests.support.surfaces import small_surface_data
from triton_models.errors import ConfigurationError, LogError
from triton_models.frontier import Frontier
from triton_models.surface import Surface


def sweep(surface: Surface, scored: ScoredRows, **settings: Any) -> Frontier:
    return build_frontier(
        surface=surface,
        run=run_reference(surface),
        window=window(len(scored.rows)),
        scored=scored,
        settings=SweepSettings(**{"estimator": "snips", "points": 3, "resamples": 200, **settings}),
    )


def graded_rows(surface: Surface, rows: int = 30_000) -> ScoredRows:
    """Planted rows with three policies: best for everybody, best for the users of taste +1 only, worst."""
    scored = planted_rows(surface, rows, 3)
    best = scored.chosen_NP[:, 0]
    worst = (surface.num_actions - 1 - best).astype(np.int16)
    half = np.full_like(best, surface.num_actions - 1)
    return ScoredRows(
        rows=scored.rows,
        chosen_NP=np.stack([best, half, worst], axis=1),
        cohort_N=scored.cohort_N,
        cohorts=scored.cohorts,
        rejected=4,
    )


def test_planted_lifts_are_found_and_ranked(surface: Surface) -> None:
    frontier = sweep(surface, graded_rows(surface))
    best, half, worst = frontier.points
    # By construction: 0.7, 0.5 and 0.3 against production's 0.5.
    for point, truth in ((best, 0.4), (half, 0.0), (worst, -0.4)):
        for name in surface.objectives:
            lift, bounds = point.lifts[name], point.intervals[name]
            assert lift is not None
            assert bounds is not None
            assert bounds[0] < truth < bounds[1]
            assert bounds[0] < lift < bounds[1]
            assert bounds[1] - bounds[0] < 0.2
    assert [point.dominated for point in frontier.points] == [False, True, True]
    assert [point.scalarization for point in frontier.points] == [(1, 0), (0.5, 0.5), (0, 1)]
    assert {label: c.point for label, c in frontier.candidates.items()} == {
        "repin_leaning": 0,
        "p2p_leaning": 0,
        "knee": 0,
        "non_degrading": 0,
    }
    assert frontier.candidates["non_degrading"].lower_bounds_not_negative is True
    assert frontier.production.estimate() is not None


def test_the_gain_of_the_best_policy_is_personalization(surface: Surface) -> None:
    # Half of the users get the first action and half the last: the mean is the middle of the grid, and the
    # middle given to everybody is worth as much as production. That is what matched static weights show.
    frontier = sweep(surface, graded_rows(surface))
    best = frontier.points[0]
    middle = {weight.head: (weight.minimum + weight.maximum) / 2 for weight in surface.controlled}
    assert best.mean_weights == pytest.approx(middle, rel=0.03)
    static = frontier.candidates["knee"].matched_static
    assert static is not None
    assert static.mean_weights == best.mean_weights
    for name in surface.objectives:
        lift, bounds = static.lifts[name], static.intervals[name]
        assert lift is not None
        assert bounds is not None
        assert bounds[0] < 0 < bounds[1]
        assert abs(lift) < 0.1


def test_values_equal_plain_numpy(surface: Surface) -> None:
    scored = graded_rows(surface, 5000)
    frontier = sweep(surface, scored, estimator="reward_at_hit")
    rows = scored.rows
    for p, point in enumerate(frontier.points):
        hit = scored.chosen_NP[:, p] == rows.action_N
        assert point.hits == hit.sum()
        assert point.effective_sample_size == pytest.approx(hit.sum())
        expected = rows.outcome_NR[hit].astype(float).mean(axis=0)
        assert list(point.values.values()) == pytest.approx(expected[:2].tolist())
        assert point.metrics["successful_session"].value == pytest.approx(expected[2])
        chosen = surface.actions[scored.chosen_NP[:, p]].mean(axis=0)
        assert list(point.mean_weights.values()) == pytest.approx(chosen.tolist())
    mixture = production_policy(surface, "smooth").probability_A[rows.action_N]
    production = (mixture[:, None] * rows.outcome_NR).sum(axis=0) / mixture.sum()
    baseline = frontier.production.estimate()
    assert baseline is not None
    assert list(baseline.values.values()) == pytest.approx(production[:2].tolist())
    lift = frontier.points[0].lifts["repin"]
    assert lift == pytest.approx(frontier.points[0].values["repin"] / production[0] - 1)


def test_each_cohort_is_valued_on_its_own_rows(surface: Surface) -> None:
    scored = graded_rows(surface)
    frontier = sweep(surface, scored, by_cohort=True)
    assert [point.cohort for point in frontier.points[::3]] == [None, "core", "casual", "rest"]
    for number, cohort in enumerate(surface.cohorts):
        alone = sweep(surface, scored.take(scored.cohort_N == number))
        assert [p.values for p in frontier.points_of(cohort)] == [p.values for p in alone.points]
        assert [p.intervals for p in frontier.points_of(cohort)] == [p.intervals for p in alone.points]
        baseline = frontier.production.estimate(cohort)
        assert baseline is not None
        assert baseline.rows == (scored.cohort_N == number).sum()
    assert all(candidate.point < 3 for candidate in frontier.candidates.values())


def test_a_cohort_without_rows_has_no_points(surface: Surface) -> None:
    scored = graded_rows(surface, 2000)
    scored.cohort_N[:] = 1
    frontier = sweep(surface, scored, by_cohort=True)
    assert {point.cohort for point in frontier.points} == {None, "casual"}


def test_no_hits_become_nulls_in_strict_json(surface: Surface, caplog: pytest.LogCaptureFixture) -> None:
    scored = planted_rows(surface, 300, 3)
    unseen = scored.take(
        scored.rows.action_N == 4
    )  # production's corners and the best actions are not logged
    with caplog.at_level(logging.WARNING, "ray_train"):
        frontier = sweep(surface, unseen)
    text = json.dumps(frontier.to_dict(), allow_nan=False)
    assert Frontier.model_validate(json.loads(text)) == frontier
    point = frontier.points[0]
    assert point.values == {"repin": None, "p2p": None}
    assert point.intervals == {"repin": None, "p2p": None}
    assert point.dominated
    assert frontier.candidates == {}
    assert "fewer than 100 hits" in caplog.text


def test_equal_seeds_give_the_same_file(surface: Surface) -> None:
    scored = graded_rows(surface, 3000)
    one, two, three = (sweep(surface, scored, seed=seed) for seed in (1, 1, 2))
    assert one.fingerprint == two.fingerprint
    assert one.points[0].values == three.points[0].values
    assert one.points[0].intervals != three.points[0].intervals


def test_no_resamples_mean_normal_intervals(surface: Surface) -> None:
    scored = graded_rows(surface)
    normal, bootstrap = (sweep(surface, scored, resamples=n) for n in (0, 1000))
    assert normal.estimator.interval == "normal (delta method) by user"
    one, two = (np.array(frontier.points[0].intervals["repin"]) for frontier in (normal, bootstrap))
    np.testing.assert_allclose(one, two, atol=0.15 * (two[1] - two[0]))


def test_production_can_be_valued_by_the_nearest_grid_point(surface: Surface) -> None:
    scored = graded_rows(surface)
    frontier = sweep(surface, scored, production="nearest")
    hit = scored.rows.action_N == surface.nearest_production_action
    baseline = frontier.production.estimate()
    assert baseline is not None
    assert baseline.values["repin"] == pytest.approx(float(scored.rows.outcome_NR[hit, 0].mean()))
    assert frontier.production.valuation == "nearest"
    assert "nearest" in frontier.production.note
    assert "mixture of the 4 surrounding grid points" in sweep(surface, scored).production.note


def test_reward_at_hit_warns_where_logging_was_not_uniform(
    surface: Surface, caplog: pytest.LogCaptureFixture
) -> None:
    chance = np.arange(1.0, surface.num_actions + 1)
    scored = planted_rows(surface, 3000, 3, logging_A=chance / chance.sum())
    with caplog.at_level(logging.WARNING, "ray_train"):
        frontier = sweep(surface, scored, estimator="snips")
    assert "not uniform" not in caplog.text
    assert "Reward@HIT" not in frontier.estimator.formula
    with caplog.at_level(logging.WARNING, "ray_train"):
        sweep(surface, scored, estimator="reward_at_hit")
    assert "the logging policy was not uniform" in caplog.text


@pytest.mark.parametrize("objectives", [["repin"], ["repin", "p2p", "click"]])
def test_other_numbers_of_objectives(objectives: list[str]) -> None:
    surface = Surface.from_dict({**small_surface_data(), "objectives": objectives, "metrics": []})
    points = 1 if len(objectives) == 1 else 28
    frontier = sweep(surface, planted_rows(surface, 20_000, points), points=25)
    assert len(frontier.points) == points
    assert all(len(point.scalarization) == len(objectives) for point in frontier.points)
    lifts = np.array([[point.lifts[name] for name in objectives] for point in frontier.points], dtype=float)
    assert [not point.dominated for point in frontier.points] == non_dominated(lifts).tolist()
    assert ("knee" in frontier.candidates) == (len(objectives) > 1)


def test_no_rows_are_refused(surface: Surface) -> None:
    empty = LoggedRows(
        user_N=np.zeros(0, np.int32),
        action_N=np.zeros(0, np.int16),
        propensity_N=np.zeros(0),
        outcome_NR=np.zeros((0, 3), np.float32),
    )
    scored = ScoredRows(
        rows=empty, chosen_NP=np.zeros((0, 3), np.int16), cohort_N=np.zeros(0, np.int16), cohorts=()
    )
    with pytest.raises(LogError, match="no usable rows between 2026-01-15"):
        sweep(surface, scored)


@pytest.mark.parametrize(
    "settings",
    [
        {"estimator": "magic"},
        {"points": 1},
        {"alpha_min": 0.5, "alpha_max": 0.5},
        {"alpha_max": 1.5},
        {"resamples": -1},
        {"confidence": 1.0},
        {"unknown": 1},
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SweepSettings(**settings)


def test_alpha_needs_two_objectives() -> None:
    surface = Surface.from_dict({**small_surface_data(), "objectives": ["repin"]})
    with pytest.raises(ConfigurationError, match="alpha-min and alpha-max need two objectives"):
        SweepSettings(alpha_max=0.5).scalarizations(surface)
