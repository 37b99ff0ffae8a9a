"""What the users saw, and its summary.

A pair is one request ranked twice in a row, control on and off, in alternating order. The difference of a
quantile, ``q(on) - q(off)``, gets an interval from a bootstrap over blocks of consecutive pairs: pairs
keep what their requests have in common, blocks keep what a stretch of time has in common.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

QUANTILES = {"p50_ms": 0.50, "p95_ms": 0.95, "p99_ms": 0.99}
BLOCK_PAIRS = 20
RESAMPLES = 400
CONFIDENCE = 0.95
MAX_SAMPLES = 1_000_000


@dataclass
class Samples:
    """Collected by the users of one Locust process; bounded."""

    pairs_ms: list[tuple[float, float]] = field(default_factory=list)
    """(control on, control off), milliseconds."""
    weights_ms: list[float] = field(default_factory=list)
    requests: int = 0
    failures: int = 0
    problems: Counter[str] = field(default_factory=Counter)
    fallbacks: Counter[str] = field(default_factory=Counter)
    """Reasons for production weights where the control was on."""
    actions: Counter[int] = field(default_factory=Counter)
    choices: int = 0
    """Answers chosen by the value network."""

    def add_pair(self, on_ms: float, off_ms: float) -> None:
        """Two right answers to one request."""
        if len(self.pairs_ms) < MAX_SAMPLES:
            self.pairs_ms.append((on_ms, off_ms))

    def add_answer(self, answer: dict[str, Any] | None, problem: str | None, *, control: bool) -> None:
        """One answer, right or wrong."""
        self.requests += 1
        if problem is not None or answer is None:
            self.failures += 1
            if len(self.problems) < 50 or problem in self.problems:
                self.problems[str(problem)] += 1
        elif control and answer["reason"] is not None:
            self.fallbacks[answer["reason"]] += 1
        elif control:
            self.choices += 1
            self.actions[answer["action"]] += 1


def quantiles(values_ms: Array) -> dict[str, float]:
    """Quantiles by name, milliseconds."""
    return {name: round(float(np.quantile(values_ms, q)), 3) for name, q in QUANTILES.items()}


def difference(pairs_n2: Array, *, seed: int = 0) -> dict[str, dict[str, Any]]:
    """``q(on) - q(off)`` of each quantile with its interval, milliseconds."""
    blocks = max(1, len(pairs_n2) // BLOCK_PAIRS)
    usable = pairs_n2[: blocks * BLOCK_PAIRS].reshape(blocks, -1, 2)
    rng = np.random.default_rng(seed)
    levels = list(QUANTILES.values())
    draws = np.empty((RESAMPLES, len(levels)))
    for draw in range(RESAMPLES):
        sample = usable[rng.integers(0, blocks, blocks)].reshape(-1, 2)
        on, off = np.quantile(sample, levels, axis=0).T
        draws[draw] = on - off
    tail = (1.0 - CONFIDENCE) / 2.0
    low, high = np.quantile(draws, [tail, 1.0 - tail], axis=0)
    on, off = np.quantile(pairs_n2, levels, axis=0).T
    return {
        name: {
            "difference": round(float(on[i] - off[i]), 3),
            # One block says nothing about spread.
            "interval": [round(float(low[i]), 3), round(float(high[i]), 3)] if blocks > 1 else None,
        }
        for i, name in enumerate(QUANTILES)
    }


def summarize(samples: Samples, *, duration_s: float, users: int) -> dict[str, Any]:
    """The summary of a run as plain JSON data."""
    summary: dict[str, Any] = {
        "version": 1,
        "users": users,
        "duration_s": round(duration_s, 2),
        "requests": samples.requests,
        "requests_per_s": round(samples.requests / duration_s, 1) if duration_s > 0 else 0.0,
        "failures": samples.failures,
        "problems": dict(samples.problems.most_common()),
        "fallbacks": dict(samples.fallbacks.most_common()),
        "choices": samples.choices,
        "distinct_actions": len(samples.actions),
        "pairs": len(samples.pairs_ms),
        "confidence": CONFIDENCE,
    }
    if samples.pairs_ms:
        pairs_n2 = np.array(samples.pairs_ms)
        for column, name in enumerate(("control_on", "control_off")):
            summary[name] = {"requests": len(pairs_n2), **quantiles(pairs_n2[:, column])}
        summary["on_minus_off_ms"] = difference(pairs_n2)
    if samples.weights_ms:
        summary["weights_only"] = {
            "requests": len(samples.weights_ms),
            **quantiles(np.array(samples.weights_ms)),
        }
    return summary
