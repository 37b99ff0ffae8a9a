"""R1 to R4 of DESIGN.md's table, judged on what callers saw. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.chaos.episodes import Outcome, Window

P99_SLACK_MS = 5.0
BACK_LIMIT_S = 5.0
REPLACED_LIMIT_S = 10.0
POLICY_LIMIT_S = 1.0


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One target and whether it was held."""

    target: str
    hit: bool
    found: str

    def line(self) -> str:
        """For people."""
        return f"{self.target}: {self.found}: {'hit' if self.hit else 'MISSED'}"


def verdicts(outcome: Outcome, calm: Window) -> list[Verdict]:
    """What this episode says about the targets; ``calm`` is the fault-free load of the same run."""
    episode = outcome.episode
    found = [_no_failed_ranking(outcome)]
    if episode.concerns == "value_network":
        if outcome.open.p99_ms is not None and calm.p99_ms is not None:
            limit = calm.p99_ms + P99_SLACK_MS
            found.append(
                Verdict(
                    target=f"{episode.title}: R1 p99, breaker open, ≤ fault-free + {P99_SLACK_MS:g} ms",
                    hit=outcome.open.p99_ms <= limit,
                    found=f"{outcome.open.p99_ms:.1f} ms against {calm.p99_ms:.1f} ms",
                )
            )
        name, limit = ("R2 replaced", REPLACED_LIMIT_S) if episode.supervised else ("R1 back", BACK_LIMIT_S)
        found.append(
            Verdict(
                target=f"{episode.title}: {name} ≤ {limit:g} s",
                hit=outcome.back_s is not None and outcome.back_s <= limit,
                found="not back" if outcome.back_s is None else f"{outcome.back_s:.2f} s",
            )
        )
    return found


def _no_failed_ranking(outcome: Outcome) -> Verdict:
    episode = outcome.episode
    found = f"{outcome.failed} of {outcome.requests}"
    if episode.concerns == "ranker":
        target = f"{episode.title}: nothing but the ranker's own 503"
        return Verdict(
            target=target, hit=outcome.failed == 0, found=f"{found} otherwise, {outcome.refused} refused"
        )
    failed = outcome.failed + outcome.refused
    again = f", {outcome.retried} asked twice because their connection broke" if outcome.retried else ""
    target = f"{episode.title}: no failed ranking"
    return Verdict(target=target, hit=failed == 0, found=f"{failed} of {outcome.requests}{again}")
