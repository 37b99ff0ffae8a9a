"""Statistics of interleaved blocks: quantile differences, ratios of rates, saturation. Pure.

A block is one stretch with the control on and one with it off, next to each other in time, with the same
bodies at the same arrival times. ``Δq = q(on) - q(off)`` is taken of the pooled latencies; its interval is
a percentile bootstrap that draws whole blocks, so it holds what a stretch of time has in common: the
machine's other work, garbage collection, a thermal limit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from triton_models.errors import BenchmarkError

FloatArray = npt.NDArray[np.float64]

RESAMPLES = 1000
CONFIDENCE = 0.95
KNEE = 0.97
CHOSEN = 0.95
"""Share of answers that the value network must have chosen for a rate to count as one with the control on."""


@dataclass(frozen=True)
class Block:
    """Latencies of one block, milliseconds; the two arms need not have equally many."""

    on_ms: FloatArray
    off_ms: FloatArray


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float

    def as_json(self) -> dict[str, float]:
        """Plain data, rounded to what was measured."""
        return {"value": round(self.value, 4), "low": round(self.low, 4), "high": round(self.high, 4)}


@dataclass(frozen=True, kw_only=True)
class Added:
    """What the control adds to one quantile, milliseconds."""

    level: float
    on_ms: float
    off_ms: float
    difference: Estimate
    per_block: tuple[float, ...]
    """The same difference inside each block."""


def added(blocks: Sequence[Block], level: float, *, seed: int = 0) -> Added:
    """``q(on) - q(off)`` at a level in (0, 1), with its interval over blocks.

    Raises:
        BenchmarkError: fewer than two blocks, or an arm without requests.
    """
    if len(blocks) < 2 or any(not len(b.on_ms) or not len(b.off_ms) for b in blocks):
        raise BenchmarkError("need at least 2 blocks with requests in both arms")
    on, off = _Pooled([b.on_ms for b in blocks]), _Pooled([b.off_ms for b in blocks])
    value = on.quantile(level) - off.quantile(level)
    draws = np.random.default_rng(seed).integers(0, len(blocks), size=(RESAMPLES, len(blocks)))
    differences = [on.quantile(level, draw) - off.quantile(level, draw) for draw in draws]
    return Added(
        level=level,
        on_ms=on.quantile(level),
        off_ms=off.quantile(level),
        difference=_estimate(value, np.array(differences)),
        per_block=tuple(float(np.quantile(b.on_ms, level) - np.quantile(b.off_ms, level)) for b in blocks),
    )


class _Pooled:
    """Values sorted once; a resample of blocks is a weight per value."""

    def __init__(self, parts: Sequence[FloatArray]) -> None:
        values = np.concatenate(parts)
        block = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        order = np.argsort(values, kind="stable")
        self._values, self._block, self._blocks = values[order], block[order], len(parts)

    def quantile(self, level: float, draw: npt.NDArray[np.int64] | None = None) -> float:
        """The smallest value with at least ``level`` of the weight at or below it."""
        if draw is None:
            draw = np.arange(self._blocks)
        weight = np.bincount(draw, minlength=self._blocks)[self._block]
        total = np.cumsum(weight)
        # Rounding must not push the last value out of reach.
        return float(self._values[np.searchsorted(total, level * total[-1] - 1e-9)])


def rate_ratio(mine: Sequence[float], base: Sequence[float], *, seed: int = 0) -> Estimate:
    """``Σ mine / Σ base`` of rates in the same turns, with its interval over turns.

    Raises:
        BenchmarkError: unequal or too few turns, or a base that served nothing.
    """
    one, two = np.array(mine, dtype=np.float64), np.array(base, dtype=np.float64)
    if len(one) != len(two) or len(one) < 2 or two.min() <= 0:
        raise BenchmarkError("need the same turns of both, at least 2, and a base that serves")
    draws = np.random.default_rng(seed).integers(0, len(one), size=(RESAMPLES, len(one)))
    return _estimate(float(one.sum() / two.sum()), one[draws].sum(axis=1) / two[draws].sum(axis=1))


def _estimate(value: float, draws: FloatArray) -> Estimate:
    tail = (1.0 - CONFIDENCE) / 2.0
    low, high = np.quantile(draws, [tail, 1.0 - tail])
    return Estimate(value=float(value), low=float(low), high=float(high))


@dataclass(frozen=True, kw_only=True)
class Saturation:
    """What closed loops of growing width came to."""

    rates: Mapping[int, float]
    """Callers → right answers a second."""
    chosen: Mapping[int, float]
    """Callers → share of them that the value network chose."""

    @property
    def counted(self) -> Mapping[int, float]:
        """The rates at which the control really worked; all of them if it did at none.

        Without this an overloaded value network would make saturation look higher: its fallbacks are cheap.
        """
        working = {n: rate for n, rate in self.rates.items() if self.chosen.get(n, 0.0) >= CHOSEN}
        return working or self.rates

    @property
    def rate_per_s(self) -> float:
        """The largest rate that any width reached with the control at work."""
        return max(self.counted.values())

    @property
    def in_flight(self) -> int:
        """The fewest callers that reach :data:`KNEE` of it: more of them only wait."""
        return min(n for n, rate in self.counted.items() if rate >= KNEE * self.rate_per_s)


def order_of_arms(block: int) -> tuple[bool, bool]:
    """Control on or off first, in turn: ABBA, so that a steady drift hits both alike."""
    return (True, False) if block % 2 == 0 else (False, True)
