"""Weights between the explored ones: interpolation, choice, value; and nobody takes them for explored."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ray_train.estimators import LoggedRows
from ray_train.finer import finer_grid, spline_matrix
from ray_train.frontier_page import render_page
from ray_train.scoring import score_states
from ray_train.sweep import ScoredRows, build_frontier
from ray_train.sweep_settings import SweepSettings
from serve.policy import PolicyBody
from serve.policy_rules import off_frontier
from tests.support.frontiers import run_reference, window
from tests.support.surfaces import small_surface_data
from triton_models.errors import ConfigurationError, FrontierError
from triton_models.frontier import Frontier, parse_frontier
from triton_models.surface import Surface


def even(points: int, factor: int) -> Any:
    return spline_matrix(np.arange(points, dtype=float), np.arange((points - 1) * factor + 1) / factor)


def test_a_spline_by_hand() -> None:
    # y = 0, 1, 0: the second derivative in the middle is 6 · (-2) / 4 = -3; half way ½ - 3 (⅛ - ½) / 6.
    assert even(3, 2) @ np.array([0.0, 1.0, 0.0]) == pytest.approx([0.0, 0.6875, 1.0, 0.6875, 0.0])
    assert even(2, 4) @ np.array([1.0, 2.0]) == pytest.approx([1.0, 1.25, 1.5, 1.75, 2.0])


@given(st.lists(st.floats(0.1, 5.0), min_size=1, max_size=8), st.integers(1, 6))
def test_splines_pass_through_what_was_explored_and_keep_lines(gaps: list[float], factor: int) -> None:
    knots = np.cumsum([0.0, *gaps])
    places = np.interp(np.arange(len(gaps) * factor + 1) / factor, np.arange(len(knots)), knots)
    spline = spline_matrix(knots, places)
    assert spline.sum(axis=1) == pytest.approx(1.0)
    assert spline[::factor] == pytest.approx(np.eye(len(knots)), abs=1e-9)
    assert spline @ (2.0 * knots - 1.0) == pytest.approx(2.0 * places - 1.0)


def test_a_spline_is_close_to_a_smooth_function() -> None:
    explored, finer = np.linspace(0, 1, 7), np.linspace(0, 1, 25)
    for function in (np.sin, np.exp, np.square):
        found = spline_matrix(explored, finer) @ function(explored)
        assert found == pytest.approx(function(finer), abs=4e-3)


def test_the_finer_grid_holds_the_explored_one(surface: Surface) -> None:
    grid = finer_grid(surface, 4)
    assert grid.weights_TW.shape == (81, 2)
    explored = grid.action_T >= 0
    assert sorted(grid.action_T[explored]) == list(range(9))
    np.testing.assert_allclose(grid.weights_TW[explored], surface.actions[grid.action_T[explored]])
    np.testing.assert_allclose(grid.mixture_TA[explored], np.eye(9)[grid.action_T[explored]], atol=1e-12)
    logs = np.log(surface.actions)  # splines over logarithms keep lines in them
    np.testing.assert_allclose(grid.mixture_TA @ logs, np.log(grid.weights_TW))
    with pytest.raises(ConfigurationError, match="finer by 40 makes 81 x 81 = 6561 weight vectors"):
        finer_grid(surface, 40)


def test_estimators_that_cannot_say_anything_are_refused() -> None:
    for name in ("reward_at_hit", "snips", "ips", "dr", "dm"):
        with pytest.raises(
            ValidationError, match=f"so {name} cannot value them; projection_dr and kernel_dr"
        ):
            SweepSettings(finer=2, estimator=name)
    assert SweepSettings(finer=2).finer == 2


BEST = 55.0
"""The weight with most reward, between the explored 41.7 and 73.3; of the finer ones 57.5 is nearest."""


def true_value(weights_AW: Any) -> Any:
    """0.7 at the best weight, less elsewhere."""
    return 0.7 - 0.2 * np.log(weights_AW[..., 0] / BEST) ** 2


@pytest.fixture(scope="module")
def seven() -> Surface:
    data = small_surface_data()
    data["controlled"] = [{**data["controlled"][0], "points": 7}]
    data["fixed"] = {**data["fixed"], "p2p": 9.1}
    return Surface.from_dict(data)


class Knowing(torch.nn.Module):
    """Knows the value of every explored action, the same for every request."""

    def __init__(self, surface: Surface) -> None:
        super().__init__()
        value_A = true_value(surface.actions)
        self.q_AM = torch.tensor(np.stack([value_A, value_A], axis=1), dtype=torch.float32)

    def action_values(self, state: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.q_AM.expand(len(state["user_embedding"]), -1, -1)


def scored(surface: Surface, factor: int, rows: int = 60_000) -> ScoredRows:
    rng = np.random.default_rng(5)
    action = rng.integers(surface.num_actions, size=rows)
    value = true_value(surface.actions[action])
    outcome = (rng.random((rows, 3)) < value[:, None]).astype(np.float32)
    arrays = {"user_embedding": np.zeros((rows, 4), np.float32)}
    arrays |= {
        "history_embedding": np.zeros((rows, 5, 3), np.float32),
        "history_action": np.zeros((rows, 5), np.int64),
        "history_age_s": np.zeros((rows, 5), np.float32),
        "context": np.zeros((rows, 2), np.int64),
    }
    network: Any = Knowing(surface)
    scalarization = SweepSettings(points=3).scalarizations(surface)
    grid = finer_grid(surface, factor)
    chosen, _ = score_states(surface, network, arrays, scalarization, torch.device("cpu"), None, grid)
    return ScoredRows(
        rows=LoggedRows(
            user_N=np.arange(rows, dtype=np.int32),
            action_N=action.astype(np.int16),
            propensity_N=np.full(rows, 1 / surface.num_actions),
            outcome_NR=outcome,
            feature_NF=np.zeros((rows, 0), np.float16),
        ),
        chosen_NP=chosen[:, :3],
        finer_NP=chosen[:, 3:],
        cohort_N=np.zeros(rows, np.int16),
        cohorts=surface.cohorts[:1],
    )


def swept(surface: Surface, rows: ScoredRows, **settings: Any) -> Frontier:
    return build_frontier(
        surface=surface,
        run=run_reference(surface),
        window=window(len(rows.rows)),
        scored=rows,
        settings=SweepSettings(points=3, resamples=100, **settings),
    )


@pytest.fixture(scope="module")
def rows(seven: Surface) -> ScoredRows:
    return scored(seven, 4)


@pytest.fixture(scope="module")
def frontier(seven: Surface, rows: ScoredRows) -> Frontier:
    return swept(seven, rows, finer=4, by_cohort=True)


@pytest.fixture(scope="module")
def plain(seven: Surface, rows: ScoredRows) -> Frontier:
    return swept(seven, rows, by_cohort=True)


def test_the_choice_lies_between_what_was_explored_and_is_worth_what_it_is(
    seven: Surface, frontier: Frontier
) -> None:
    explored, between = (frontier.points_of(None, extrapolated=e) for e in (False, True))
    assert len(explored) == len(between) == 3
    for points, chosen in ((explored, 41.6667), (between, 57.5)):
        for point in points:
            value, lift, bounds = (getattr(point, n)["repin"] for n in ("values", "lifts", "intervals"))
            assert point.mean_weights["repin"] == pytest.approx(chosen)
            truth = true_value(np.array([chosen]))
            assert value == pytest.approx(truth, abs=0.01)
            assert bounds[0] < truth / true_production(seven) - 1 < bounds[1]
            assert bounds[0] < lift < bounds[1]


def true_production(surface: Surface) -> float:
    return float(surface.production_mixture() @ true_value(surface.actions))


def test_extrapolated_points_are_no_candidates_and_change_nothing_else(
    frontier: Frontier, plain: Frontier
) -> None:
    assert frontier.points_of(None) == plain.points_of(None)
    assert frontier.candidates == plain.candidates
    assert frontier.points_of("core") == plain.points_of("core")
    assert len(frontier.points_of("core", extrapolated=True)) == 3
    assert any("no logged row checks that" in warning for warning in frontier.warnings)
    # All of these choices lie between explored weights: no logged row is a hit.
    assert {point.hits for point in frontier.points_of(None, extrapolated=True)} == {0}


def test_a_frontier_whose_candidate_is_extrapolated_is_refused(frontier: Frontier) -> None:
    data = frontier.to_dict()
    index = next(i for i, point in enumerate(data["points"]) if point["extrapolated"])
    next(iter(data["candidates"].values()))["point"] = index
    with pytest.raises(FrontierError, match=f"names point {index}, which is extrapolated"):
        parse_frontier(data, source="test")


def test_an_operating_point_that_is_only_extrapolated_needs_force(seven: Surface, frontier: Frontier) -> None:
    data = frontier.to_dict()
    wanted = data["points"][0]["scalarization"]
    body = PolicyBody.model_validate({"arms": [{"name": "a", "choice": wanted}]})
    before = PolicyBody.model_validate({"arms": [{"name": "b", "choice": "static"}]})
    data["candidates"] = {}
    for point in data["points"]:  # whatever was explored is dominated now
        point["dominated"] = not point["extrapolated"]
    found = off_frontier(body, seven, parse_frontier(data, source="test"), before=before)
    assert found is not None and "is not a point of the frontier" in found


def test_the_page_tells_them_apart(frontier: Frontier, plain: Frontier) -> None:
    page = render_page(frontier)
    assert page.count('class="extrapolated"') == 6  # everybody's and the cohort's
    assert "weights between those explored" in page
    assert "extrapolated: the same network choosing among weights" in page
    assert "extrapolated: " not in render_page(plain)
