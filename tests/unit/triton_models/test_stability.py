"""The population stability index and its bins."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from triton_models.stability import BINS, bin_counts, population_stability, quantile_edges


@given(st.lists(st.integers(0, 50), min_size=2, max_size=9), st.integers(1, 5))
def test_population_stability_is_zero_for_the_same_and_never_negative(counts: list[int], times: int) -> None:
    other = list(reversed(counts))
    assert population_stability(counts, other) >= 0
    assert population_stability(counts, counts) == pytest.approx(0.0, abs=1e-12)
    assert population_stability([0] * len(counts), counts) == 0.0
    large = [c * 1000 + 1000 for c in counts]
    assert population_stability(large, [c * times for c in large]) == pytest.approx(0.0, abs=1e-3)


def test_population_stability_by_hand() -> None:
    # Shares ¼ ¾ and ¾ ¼: ½ log 3 · 2
    assert population_stability([2500, 7500], [7500, 2500]) == pytest.approx(math.log(3), rel=1e-3)
    with pytest.raises(ValueError, match="same bins"):
        population_stability([1, 2], [1])


def test_bins_of_equal_share() -> None:
    values = np.random.default_rng(0).permutation(1000).astype(float)
    edges = quantile_edges(values)
    # The least value with k/10 of the values at or below it is 99, 199, …; an edge is in the bin above.
    assert edges.tolist() == [99.0, 199.0, 299.0, 399.0, 499.0, 599.0, 699.0, 799.0, 899.0]
    assert bin_counts(edges, values).tolist() == [99, *[100] * 8, 101]


def test_a_constant_is_seen_to_move_either_way() -> None:
    edges = quantile_edges(np.zeros(100))
    assert bin_counts(edges, [-1.0, 0.0, 0.0, 1e-9]).tolist() == [1, 2, 1]
    expected = bin_counts(edges, np.zeros(100))
    for moved in (-1e-6, 1e-6):
        assert population_stability(expected, bin_counts(edges, np.full(100, moved))) > 0.25


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=80), st.integers(2, 12))
def test_every_value_is_in_one_bin_and_edges_increase(values: list[float], bins: int) -> None:
    edges = quantile_edges(values, bins)
    assert (np.diff(edges) > 0).all()
    counts = bin_counts(edges, values)
    assert (len(counts), counts.sum()) == (len(edges) + 1, len(values))


def test_no_values_no_edges() -> None:
    assert bin_counts(quantile_edges([]), [1.0, 2.0]).tolist() == [2]


def test_the_index_where_nothing_changed_is_what_the_docstring_says() -> None:
    random = np.random.default_rng(3)
    edges = quantile_edges(random.normal(size=20_000))
    found = [
        population_stability(*(bin_counts(edges, random.normal(size=n)) for n in (5000, 500)))
        for _ in range(300)
    ]
    # (B - 1)(1/n + 1/m); 300 draws of a χ² of 9 degrees know its mean to 3 %
    assert np.mean(found) == pytest.approx((BINS - 1) * (1 / 5000 + 1 / 500), rel=0.1)
    assert max(found) < 0.1
