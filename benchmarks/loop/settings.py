"""What ``benchmarks loop`` is told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.loop.callers import Route
from triton_models.errors import BenchmarkError

CONTROL, TREATMENT = "static", "personalized"


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """Sizes of one turn; the defaults take about a quarter of an hour on two quiet cores."""

    out: Path
    requests: int = 60_000
    """Sent to the sidecar to explore."""
    exploration: float = 0.98
    """Share of them that explores. Far above the 1.25 % of a real feed, whose traffic is a thousand times
    larger: what is wanted here is a log that can be learned from, after minutes."""
    test_requests: int = 60_000
    """Sent to the sidecar in the A/B test."""
    route: Route = "weights"
    """``weights``: the caller ranks by itself with the weights of the answer, which is quick; ``rank``: the
    sidecar ranks, through the reference ranker's Triton."""
    epochs: int = 6
    workers: int = 1
    callers: int = 8
    operating_point: str | None = None
    """A candidate of the frontier to test; None: as :mod:`benchmarks.loop.choice` says."""
    estimator: str | None = None
    """Of the sweep; None: its own default."""
    budget_ms: float = 50.0
    """Generous: a fallback would dilute the treatment arm, and what is shown here is not latency."""
    seed: int = 1

    def __post_init__(self) -> None:
        if min(self.requests, self.test_requests) < 2000:
            raise BenchmarkError("fewer than 2,000 requests say nothing; give more")
        if not 0 < self.exploration <= 1:
            raise BenchmarkError(f"exploration lies in (0, 1], got {self.exploration:g}")
        if self.epochs < 1 or self.workers < 1 or not 1 <= self.callers <= 64:
            raise BenchmarkError("epochs and workers must be at least 1, callers 1 to 64")
