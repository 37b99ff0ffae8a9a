"""Figures, and what they say about the targets of the design (P4)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from benchmarks.cost.timing import Estimate, Times, ratio

P4_BATCHES = (1, 64)
P4_FACTORS: dict[str, float] = {"A": 20.0, "B": 3.0}
"""How many times cheaper a choice must be than with each naive export."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One contestant at one batch size."""

    contestant: str
    batch: int
    times: Times

    @property
    def us_per_choice(self) -> float:
        """Microseconds per choice at the median."""
        return 1e6 * self.times.median_s / self.batch

    @property
    def choices_per_s(self) -> float:
        """Choices per second, one call after the other."""
        return self.batch / self.times.median_s


@dataclass(frozen=True, kw_only=True)
class Target:
    """One line of P4."""

    contestant: str
    label: str
    baseline: str
    batch: int
    ratio: Estimate
    factor: float

    @property
    def verdict(self) -> Literal["reached", "reached, but the interval holds the target", "MISSED"]:
        """Against the target, interval included."""
        if self.ratio.value < self.factor:
            return "MISSED"
        return "reached" if self.ratio.low >= self.factor else "reached, but the interval holds the target"

    @property
    def text(self) -> str:
        """One line for a person."""
        return (
            f"P4, batch {self.batch}: {self.label} vs {self.baseline}: {self.ratio.value:.1f} times "
            f"[{self.ratio.low:.1f}, {self.ratio.high:.1f}], target >= {self.factor:g}: {self.verdict}"
        )


def p4_targets(figures: Iterable[Figure], labels: Mapping[str, str]) -> tuple[Target, ...]:
    """Every served network against both naive exports of the first, where all were measured."""
    times = {(figure.contestant, figure.batch): figure.times for figure in figures}
    return tuple(
        Target(
            contestant=key,
            label=label,
            baseline=baseline,
            batch=batch,
            ratio=ratio(times[baseline, batch], times[key, batch]),
            factor=factor,
        )
        for key, label in labels.items()
        for batch in P4_BATCHES
        for baseline, factor in P4_FACTORS.items()
        if (baseline, batch) in times and (key, batch) in times
    )
