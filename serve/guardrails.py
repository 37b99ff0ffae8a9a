"""When a ramp has to end: pure decisions over the ramped arm's own traffic, with a clock from outside.

A limit is crossed when, over the last ``window_s`` and at least ``minimum_sample`` requests of that arm,

* fallbacks / requests > ``max_fallback_share``, counting what is the value network's doing, not the caller's;
* errors / requests > ``max_error_share``, requests that got no ranking;
* the 99th percentile of the added latency > ``max_added_p99_ms``, which is the same as: more than 1 % of the
  requests waited longer than that;

or when a reported guardrail metric's whole interval lies beyond its limit: then the loss is sure.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, model_validator

from serve.decide import Decision, Reason
from serve.policy import Assignment, Guardrails, Id, Number, Policy
from triton_models.surface import FiniteFloat

NETWORK_REASONS: frozenset[Reason] = frozenset(
    {"late", "unavailable", "overloaded", "breaker_open", "invalid_answer", "surface_mismatch"}
)
"""Fallbacks that a policy can be blamed for."""

BUCKETS = 12
"""Parts of a window; it moves on by one of them at a time."""

P99 = 0.01

Limit = Literal["fallback_share", "error_share", "added_p99_ms", "metric"]


@dataclass(frozen=True, kw_only=True)
class Tally:
    """The ramped arm's requests in a window."""

    requests: int = 0
    fallbacks: int = 0
    errors: int = 0
    slow: int = 0
    """Waited longer than ``max_added_p99_ms``."""


@dataclass(frozen=True, kw_only=True)
class Breach:
    """A limit that was crossed."""

    limit: Limit
    reason: str


class MetricReport(BaseModel):
    """A guardrail metric of a policy's ramped arm against the others, as measured outside the sidecar."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    policy_version: Number
    metric: Id
    lift: FiniteFloat
    """Relative difference: 0.013 is +1.3 %."""
    interval: tuple[FiniteFloat, FiniteFloat]

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.interval[0] > self.interval[1]:
            raise ValueError(f"the interval's ends are in the wrong order: {list(self.interval)}")
        return self


class Window:
    """Counts over the last ``window_s``, give or take one bucket."""

    def __init__(self, window_s: float) -> None:
        self._width_s = window_s / BUCKETS
        self._buckets: deque[list[int]] = deque(maxlen=BUCKETS + 1)

    def add(self, now_s: float, *, fallback: bool = False, error: bool = False, slow: bool = False) -> None:
        """Count one request."""
        number = int(now_s // self._width_s)
        if not self._buckets or self._buckets[-1][0] != number:
            self._buckets.append([number, 0, 0, 0, 0])
        bucket = self._buckets[-1]
        bucket[1] += 1
        bucket[2] += fallback
        bucket[3] += error
        bucket[4] += slow

    def tally(self, now_s: float) -> Tally:
        """The counts at a moment."""
        oldest = int(now_s // self._width_s) - BUCKETS
        recent = [bucket for bucket in tuple(self._buckets) if bucket[0] > oldest]
        requests, fallbacks, errors, slow = (sum(bucket[i] for bucket in recent) for i in (1, 2, 3, 4))
        return Tally(requests=requests, fallbacks=fallbacks, errors=errors, slow=slow)


def breach(limits: Guardrails, tally: Tally, reports: Mapping[str, MetricReport]) -> Breach | None:
    """The first limit that is crossed; None: go on."""
    if tally.requests >= limits.minimum_sample:
        shares: list[tuple[Limit, str, int, float | None]] = [
            ("error_share", "got no ranking", tally.errors, limits.max_error_share),
            ("fallback_share", "fell back to production weights", tally.fallbacks, limits.max_fallback_share),
        ]
        for limit, what, count, largest in shares:
            if largest is not None and count / tally.requests > largest:
                return Breach(
                    limit=limit,
                    reason=f"{count} of {tally.requests} requests of the ramped arm {what} within "
                    f"{limits.window_s:g} s, more than {largest:.2%}",
                )
        if limits.max_added_p99_ms is not None and tally.slow > P99 * tally.requests:
            return Breach(
                limit="added_p99_ms",
                reason=f"{tally.slow} of {tally.requests} requests of the ramped arm waited longer than "
                f"{limits.max_added_p99_ms:g} ms for the value network within {limits.window_s:g} s: "
                "the 99th percentile is above the limit",
            )
    return next(filter(None, (_metric_breach(limits, report) for report in reports.values())), None)


def _metric_breach(limits: Guardrails, report: MetricReport) -> Breach | None:
    limit = limits.metrics.get(report.metric)
    if limit is None:
        return None
    low, high = report.interval
    shown = f"{report.metric}: lift {report.lift:+.2%}, interval [{low:+.2%}, {high:+.2%}], "
    if limit.minimum_lift is not None and high < limit.minimum_lift:
        return Breach(limit="metric", reason=f"{shown}all below {limit.minimum_lift:+.2%}")
    if limit.maximum_lift is not None and low > limit.maximum_lift:
        return Breach(limit="metric", reason=f"{shown}all above {limit.maximum_lift:+.2%}")
    return None


class RampWatch:
    """What is measured of the ramped arm of the policy in force. Written by the event loop, read by a thread:
    everything hangs on one attribute, so a reader sees one policy's numbers or another's, never a mixture."""

    def __init__(self) -> None:
        self._state: tuple[Policy, Window, dict[str, MetricReport]] | None = None

    def begin(self, policy: Policy) -> None:
        """Another policy is in force: start afresh."""
        watched = policy.ramp is not None
        self._state = (policy, Window(policy.guardrails.window_s), {}) if watched else None

    def record(
        self,
        now_s: float,
        assigned: Assignment,
        decision: Decision | None,
        *,
        added_s: float = 0.0,
    ) -> None:
        """Count a request of the ramped arm; ``decision`` None: it got no ranking."""
        state = self._state
        if state is None or not assigned.ramped or assigned.kind == "exploration":
            return
        policy, window, _ = state
        if assigned.policy_version != policy.version:
            return
        reason = None if decision is None else decision.reason
        if reason == "control_off":
            return
        slowest_ms = policy.guardrails.max_added_p99_ms
        window.add(
            now_s,
            fallback=reason in NETWORK_REASONS,
            error=decision is None,
            slow=slowest_ms is not None and added_s * 1000.0 > slowest_ms,
        )

    def report(self, report: MetricReport) -> bool:
        """Take in a metric of the policy in force; False: it is about another one, or nothing is ramped."""
        state = self._state
        if state is None or state[0].version != report.policy_version:
            return False
        state[2][report.metric] = report
        return True

    def breach(self, version: int, now_s: float) -> Breach | None:
        """The limit that policy ``version`` has crossed; None: none, or it is not watched."""
        state = self._state
        if state is None or state[0].version != version:
            return None
        policy, window, reports = state
        return breach(policy.guardrails, window.tally(now_s), dict(reports))

    def describe(self, now_s: float) -> dict[str, object] | None:
        """The numbers of this replica, for people."""
        state = self._state
        if state is None:
            return None
        reports = [report.model_dump(mode="json") for report in dict(state[2]).values()]
        return {**state[1].tally(now_s).__dict__, "metrics": reports}
