from __future__ import annotations

import numpy as np
import pytest

from benchmarks.estimator_error.pool import Pool
from benchmarks.estimator_error.repetitions import Found, Plan, repeat
from benchmarks.estimator_error.report import as_markdown, as_page, figures
from triton_models.surface import Surface


def pool(surface: Surface, requests: int = 600) -> Pool:
    """Users of three requests each; action a earns 0.3 + 0.05 a; one policy per action 8 and 0."""
    size, width = surface.num_actions, 60
    mean_A = 0.3 + 0.05 * np.arange(size)
    rng = np.random.default_rng(0)
    return Pool(
        mean_nAM=np.broadcast_to(mean_A[None, :, None], (requests, size, 2)).astype(np.float32),
        production_M=np.full(2, float(surface.production_mixture() @ mean_A)),
        user_n=np.repeat(np.arange(requests // 3), 3),
        feature_nF=rng.normal(size=(requests, width)).astype(np.float32),
        chosen_nP=np.tile(np.array([8, 0], dtype=np.int16), (requests, 1)),
        scalarization_PM=np.array([[1.0, 0.0], [0.0, 1.0]]),
    )


def plan(surface: Surface, *estimators: str) -> Plan:
    return Plan(
        pool=pool(surface), surface=surface, estimators=estimators, bootstrapped=("snips",), rows=900, seed=1
    )


def test_the_truth_of_a_pool_by_hand(surface: Surface) -> None:
    one = pool(surface)
    production = float(surface.production_mixture() @ (0.3 + 0.05 * np.arange(9)))
    expected = [[0.7 / production - 1] * 2, [0.3 / production - 1] * 2]
    np.testing.assert_allclose(one.truth_PM, expected, rtol=1e-6)


def test_a_drawn_log_keeps_users_whole_and_actions_uniform(surface: Surface) -> None:
    rows, chosen = pool(surface).logged(np.random.default_rng(1), 9000, np.full(9, 1 / 9))
    assert len(rows) == 9000
    assert (np.bincount(rows.user_N) == 3).all()
    assert (np.diff(rows.user_N) >= 0).all()
    np.testing.assert_allclose(np.bincount(rows.action_N) / len(rows), 1 / 9, atol=0.02)
    hit = rows.action_N == 8
    assert rows.outcome_NR[hit].mean() == pytest.approx(0.7, abs=0.05)
    assert chosen.shape == (9000, 2)


def test_repetitions_find_no_bias_where_there_is_none(surface: Surface) -> None:
    found = repeat(plan(surface, "reward_at_hit", "snips", "dr"), 40, processes=1)
    for one in found:
        assert one.error_KPM.shape == (40, 2, 2)
        assert (np.abs(one.bias_PM) < 4 * one.error_KPM.std(axis=0) / np.sqrt(40)).all()
        assert one.coverage_PM.mean() > 0.85
    # Under uniform logging SNIPS is Reward@HIT.
    np.testing.assert_allclose(found[0].error_KPM, found[1].error_KPM, rtol=1e-9)
    assert found[1].bootstrap_KPM is not None
    assert found[0].bootstrap_KPM is None


def test_report_by_hand() -> None:
    # Errors +1 and -1 for Reward@HIT, +½ twice for the other: RMSE 1 and ½, bias 0 and ½.
    def found(name: str, errors: list[float], covered: list[bool]) -> Found:
        return Found(
            name=name,
            error_KPM=np.array(errors)[:, None, None],
            covered_KPM=np.array(covered)[:, None, None],
            together_K=np.array(covered),
            bootstrap_KPM=None,
        )

    rows = figures(
        [found("reward_at_hit", [1, -1], [True, True]), found("dm", [0.5, 0.5], [True, False])],
        np.zeros((1, 1)),
    )
    assert [row["rmse_ratio"] for row in rows] == [1.0, 0.5]
    assert [row["bias_worst"] for row in rows] == [0.0, 0.5]
    assert [row["coverage"] for row in rows] == [1.0, 0.5]
    assert [row["said_to_be_unbiased"] for row in rows] == [True, False]
    assert "| dm | no | 50.00 | 0.50 (0.50, 0.50) | 50.00, 50.00 | 50.0 %" in as_markdown(rows)
    page = as_page(rows, "A title")
    assert page.count("<circle") == 2
    assert "A title" in page
