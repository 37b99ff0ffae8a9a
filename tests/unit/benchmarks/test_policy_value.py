"""The worth of policies in a world whose values are written down by hand."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.feed.truth import Truth
from benchmarks.policy_value import as_markdown, worth_of

LAMBDAS = np.array([[0.5, 0.5]])


def test_the_best_policy_captures_all_a_static_one_nothing_and_differences_are_paired() -> None:
    count = 2000
    rng = np.random.default_rng(0)
    kind = rng.integers(0, 2, count)
    # Action 0 suits requests of kind 0, action 1 the others; noise that both runs share is large.
    q = np.zeros((count, 2, 2))
    q[np.arange(count), kind] = 1.0
    q += rng.normal(size=(count, 1, 1)) * 5.0
    truth = Truth(
        outcomes=("a", "b"),
        objectives=2,
        cohort=np.full(count, "core", dtype=object),
        production_nR=np.full((count, 2), 2.0),
        half_2nAR=np.stack([q, q]),
    )
    best, static = kind[:, None], np.zeros((count, 1), dtype=np.int64)
    static[:] = truth.best_static([0.5, 0.5])
    first, second = worth_of(truth, ["static", "best"], [static, best], LAMBDAS)
    assert first.captured_P[0] == pytest.approx(0.0) and second.captured_P[0] == pytest.approx(1.0)
    assert first.mean_difference == (0.0, 0.0, 0.0)
    share = (kind != static[0, 0]).mean()
    mean, low, high = second.mean_difference
    assert mean == pytest.approx(share / 2.0)
    # Paired: the width is that of a coin, not that of the shared noise.
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(share * (1 - share) / count) / 2.0, rel=0.1)
    assert "| mean | best | 1.000 |" in as_markdown([first, second], LAMBDAS)
