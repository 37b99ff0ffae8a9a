"""Timing several contestants so that whatever drifts hits all of them alike.

Time is cut into blocks; in each block every contestant has its turn, in an order drawn anew, each after
calls that are not counted. A contestant's figure is the median over the blocks of its median call; the
ratio of two contestants is that of their medians, with a bootstrap over the blocks (the same blocks for
both), so that its interval holds what the machine's other work did to them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Call = Callable[[], object]
FloatArray = npt.NDArray[np.float64]

RESAMPLES = 2000
LEVEL = 0.95
MOST_CALLS = 2000
"""Calls of one turn at most."""


@dataclass(frozen=True, kw_only=True)
class TimingSettings:
    """How long to measure."""

    blocks: int = 20
    block_s: float = 0.06
    """Time of one turn."""
    warmup_s: float = 0.3
    """Calls before the first block, per contestant."""
    longest_call_s: float = 6.0
    """Contestants that are expected to need more for one call are left out."""
    seed: int = 0


@dataclass(frozen=True)
class Times:
    """What was measured of one contestant at one batch size, seconds per call."""

    median_s: float
    low_s: float
    """5th percentile of all calls."""
    high_s: float
    """95th percentile of all calls."""
    calls: int
    block_medians_s: tuple[float, ...]
    block_means_s: tuple[float, ...]


@dataclass(frozen=True)
class Estimate:
    """A ratio or a difference with its bootstrap interval."""

    value: float
    low: float
    high: float


def warm_up(call: Call, settings: TimingSettings) -> float:
    """Call until it is warm; the shortest call in seconds."""
    best, calls, begin = math.inf, 0, time.perf_counter()
    while True:
        start = time.perf_counter()
        call()
        now = time.perf_counter()
        best, calls = min(best, now - start), calls + 1
        if calls >= 3 and now - begin >= settings.warmup_s:
            return best
        if now - start > settings.warmup_s and calls >= 2:
            return best


def interleaved(
    calls: Mapping[str, Call],
    settings: TimingSettings,
    *,
    at_start: Callable[[str], None] = lambda key: None,
    at_end: Callable[[str, int], None] = lambda key, calls: None,
) -> dict[str, Times]:
    """Time every call in every block; the hooks are told before and after what is counted of a turn."""
    expected = {key: warm_up(call, settings) for key, call in calls.items()}
    rng = np.random.default_rng(settings.seed)
    turns: dict[str, list[FloatArray]] = {key: [] for key in calls}
    keys = list(calls)
    for _ in range(settings.blocks):
        for i in rng.permutation(len(keys)):
            key = keys[i]
            count = int(np.clip(settings.block_s / expected[key], 1, MOST_CALLS))
            # The neighbour's data are in the caches; a call as long as a turn brings its own along.
            for _ in range(min(3, count) if expected[key] < settings.block_s else 0):
                calls[key]()
            at_start(key)
            turns[key].append(_samples(calls[key], count))
            at_end(key, count)
    return {key: _times(samples) for key, samples in turns.items()}


def _samples(call: Call, count: int) -> FloatArray:
    samples = np.empty(count)
    for i in range(count):
        start = time.perf_counter()
        call()
        samples[i] = time.perf_counter() - start
    return samples


def _times(turns: list[FloatArray]) -> Times:
    every = np.concatenate(turns)
    medians = tuple(float(np.median(turn)) for turn in turns)
    low, high = (float(value) for value in np.quantile(every, (0.05, 0.95)))
    means = tuple(float(turn.mean()) for turn in turns)
    return Times(float(np.median(medians)), low, high, len(every), medians, means)


def ratio(of: Times, to: Times, *, seed: int = 0) -> Estimate:
    """``median(of) / median(to)``: how many times cheaper ``to`` is, with its 95 % interval."""
    one, other = np.array(of.block_medians_s), np.array(to.block_medians_s)
    picks = _resamples(one, other, seed)
    low, high = _interval(np.median(one[picks], axis=1) / np.median(other[picks], axis=1))
    return Estimate(of.median_s / to.median_s, low, high)


def difference(of: Sequence[float], minus: Sequence[float], *, seed: int = 0) -> Estimate:
    """Median over the blocks of ``of - minus`` in the same block, with its 95 % interval."""
    one, other = np.array(of), np.array(minus)
    picks = _resamples(one, other, seed)
    low, high = _interval(np.median((one - other)[picks], axis=1))
    return Estimate(float(np.median(one - other)), low, high)


def _resamples(one: FloatArray, other: FloatArray, seed: int) -> npt.NDArray[np.int64]:
    if len(one) != len(other):
        raise ValueError(f"both must have the same blocks, got {len(one)} and {len(other)}")
    return np.random.default_rng(seed).integers(0, len(one), size=(RESAMPLES, len(one)))


def _interval(values: FloatArray) -> tuple[float, float]:
    tail = (1.0 - LEVEL) / 2.0
    low, high = np.quantile(values, (tail, 1.0 - tail))
    return float(low), float(high)
