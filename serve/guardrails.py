"""When a ramp has to end: pure decisions over the ramped arm's own traffic, with a clock from outside.

A limit is crossed when, over the last ``window_s`` and at least ``minimum_sample`` requests of that arm,

* fallbacks / requests > ``max_fallback_share``, counting what is the value network's doing, not the caller's;
* errors / requests > ``max_error_share``, requests that got no ranking;
* the 99th percentile of the added latency > ``max_added_p99_ms``, which is the same as: more than 1 % of the
  requests waited longer than that;

or when a reported guardrail metric's whole interval lies beyond its limit: then the loss is sure.

The requests are those of all replicas that share a policy store. Each counts its own in buckets of
``window_s / 12`` that begin at the same Unix times everywhere, tells the others its buckets through the store
about once a second, off the requests' path, and judges the sum. So ``minimum_sample`` is reached by the arm's
traffic, however it is spread. What that costs: what others have counted is known a second late; clocks that
differ move their buckets by so much; while the store does not answer, each replica goes on with its own count
and the others' last one. A replica that is gone is counted until its buckets have left the window.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, model_validator

from serve.assignment import Assignment
from serve.decide import Decision, Reason
from serve.policy import Guardrails, Id, Number, Policy
from triton_models.surface import FiniteFloat

NETWORK_REASONS: frozenset[Reason] = frozenset(
    {"late", "unavailable", "overloaded", "breaker_open", "invalid_answer", "surface_mismatch"}
)
"""Fallbacks that a policy can be blamed for."""

BUCKETS = 12
"""Parts of a window; it moves on by one of them at a time."""

P99 = 0.01

Counts = tuple[int, int, int, int, int]
"""A bucket: its number since 1970, requests, fallbacks, errors, slow ones."""

_COUNTS = TypeAdapter(list[Counts])

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

    def recent(self, now_s: float, others: Iterable[Counts] = ()) -> list[Counts]:
        """Buckets of the window that ends at a moment; of ``others`` likewise."""
        oldest = int(now_s // self._width_s) - BUCKETS
        own: list[Counts] = [(b[0], b[1], b[2], b[3], b[4]) for b in tuple(self._buckets)]
        return [bucket for bucket in (*own, *others) if bucket[0] > oldest]

    def tally(self, now_s: float, others: Iterable[Counts] = ()) -> Tally:
        """The counts at a moment, together with other windows' of the same width."""
        recent = self.recent(now_s, others)
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


@dataclass(kw_only=True)
class _Watched:
    """What is measured of one policy's ramped arm."""

    policy: Policy
    window: Window
    reports: dict[str, MetricReport] = field(default_factory=dict)
    others: tuple[tuple[Counts, ...], ...] = ()
    """What other replicas have counted, as they said last; swapped whole."""

    def tally(self, now_s: float) -> Tally:
        return self.window.tally(now_s, chain.from_iterable(self.others))


class RampWatch:
    """What is measured of the ramped arm of the policy in force. Written by the event loop, read by a thread:
    everything hangs on one attribute, so a reader sees one policy's numbers or another's, never a mixture."""

    def __init__(self) -> None:
        self._state: _Watched | None = None

    def begin(self, policy: Policy) -> None:
        """Another policy is in force: start afresh."""
        watched = policy.ramp is not None
        self._state = _Watched(policy=policy, window=Window(policy.guardrails.window_s)) if watched else None

    def told(self, version: int, now_s: float) -> str | None:
        """What this replica has counted of policy ``version``, for the others; None: it is not watched."""
        state = self._of(version)
        return None if state is None else _COUNTS.dump_json(state.window.recent(now_s)).decode()

    def hear(self, version: int, texts: Iterable[str]) -> None:
        """Take in what other replicas have counted of policy ``version``, in place of their last word."""
        state = self._of(version)
        if state is not None:
            state.others = tuple(filter(None, map(_read_counts, texts)))

    def _of(self, version: int) -> _Watched | None:
        state = self._state
        return state if state is not None and state.policy.version == version else None

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
        if assigned.policy_version != state.policy.version:
            return
        reason = None if decision is None else decision.reason
        if reason == "control_off":
            return
        slowest_ms = state.policy.guardrails.max_added_p99_ms
        state.window.add(
            now_s,
            fallback=reason in NETWORK_REASONS,
            error=decision is None,
            slow=slowest_ms is not None and added_s * 1000.0 > slowest_ms,
        )

    def report(self, report: MetricReport) -> bool:
        """Take in a metric of the policy in force; False: it is about another one, or nothing is ramped."""
        state = self._of(report.policy_version)
        if state is None:
            return False
        state.reports[report.metric] = report
        return True

    def breach(self, version: int, now_s: float) -> Breach | None:
        """The limit that policy ``version`` has crossed; None: none, or it is not watched."""
        state = self._of(version)
        if state is None:
            return None
        return breach(state.policy.guardrails, state.tally(now_s), dict(state.reports))

    def describe(self, now_s: float) -> dict[str, object] | None:
        """The numbers of all replicas, as far as this one has heard of them, for people."""
        state = self._state
        if state is None:
            return None
        reports = [report.model_dump(mode="json") for report in dict(state.reports).values()]
        return {**state.tally(now_s).__dict__, "replicas": 1 + len(state.others), "metrics": reports}


def _read_counts(text: str) -> tuple[Counts, ...]:
    """Another replica's buckets; none of it if it cannot be read: it may be of another release."""
    try:
        return tuple(_COUNTS.validate_json(text))
    except ValidationError:
        return ()
