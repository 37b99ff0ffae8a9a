"""Summaries of live latencies, written down by hand; numbers that give none are refused."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.beside import MODES, Turn, check, summarize, table
from triton_models.errors import BenchmarkError

FACTOR = {"off": 1.0, "paced": 1.5, "greedy": 4.0}


def test_ratios_are_those_of_the_turns() -> None:
    rng = np.random.default_rng(1)
    turns = [
        Turn(
            mode=mode,
            live_ms=tuple(FACTOR[mode] * (2.0 + 0.1 * rng.random(100))),
            failures=int(mode == "greedy"),
            scored_rows=0 if mode == "off" else 300,
            seconds=3.0,
        )
        for _ in range(6)
        for mode in MODES
    ]
    for one in summarize(turns):
        ratio, low, high = one.p50_ratio
        assert low <= ratio <= high and high - low < 0.2
        assert ratio == pytest.approx(FACTOR[one.mode], rel=0.02)
        assert one.requests == 600
        assert one.rows_per_s == (0 if one.mode == "off" else 100)
    assert "| greedy | 100 |" in table(summarize(turns)) and "6 of 600" in table(summarize(turns))


@pytest.mark.parametrize(
    ("rate", "turns", "turn_s"),
    [(0.1, 12, 3.0), (50, 1, 3.0), (50, 12, 0), (math.nan, 12, 3), (math.inf, 12, 3), (50, 12, math.nan)],
)
def test_too_few_requests_for_percentiles_are_refused(rate: float, turns: int, turn_s: float) -> None:
    with pytest.raises(BenchmarkError, match="at least 2 turns of at least 20 requests"):
        check(rate=rate, turns=turns, turn_s=turn_s)
