"""What the cases of a fuzzing run came to."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

MAX_FINDINGS = 50


@dataclass
class Tally:
    """Cases by kind and status, and whatever should not have happened."""

    seed: int
    cases: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(kind of case, status or what came instead of one) → number."""
    findings: list[str] = field(default_factory=list)
    num_findings: int = 0
    fallbacks: dict[str, int] = field(default_factory=dict)
    """Rankings with production weights, by reason: the ways of falling back that were on the path."""

    def count(self, kind: str, status: int | str) -> None:
        """Count one case."""
        self.cases[kind, str(status)] += 1

    def find(self, text: str) -> None:
        """Write down something that should not have happened; the first fifty are kept whole."""
        self.num_findings += 1
        if len(self.findings) < MAX_FINDINGS:
            self.findings.append(text)

    @property
    def total(self) -> int:
        """All cases."""
        return sum(self.cases.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        kinds = sorted({kind for kind, _ in self.cases})
        return {
            "seed": self.seed,
            "cases": self.total,
            "by_kind": {
                kind: {status: n for (k, status), n in sorted(self.cases.items()) if k == kind}
                for kind in kinds
            },
            "fallbacks": self.fallbacks,
            "num_findings": self.num_findings,
            "findings": self.findings,
        }

    def lines(self) -> list[str]:
        """A table for people."""
        table = self.to_dict()["by_kind"]
        reasons = "  ".join(f"{reason}: {n}" for reason, n in self.fallbacks.items() if n)
        lines = [
            f"{kind:<24} {sum(statuses.values()):>7}   "
            + "  ".join(f"{status}: {n}" for status, n in statuses.items())
            for kind, statuses in table.items()
        ]
        if self.fallbacks:
            lines.append(f"{'production weights':<24} {sum(self.fallbacks.values()):>7}   {reasons}")
        return lines
