"""When a ramp ends: by hand, with a clock of our own."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.assignment import Assignment
from serve.decide import REASONS, Reason, production, static
from serve.guardrails import MetricReport, RampWatch, Tally, Window, breach
from serve.policy import Guardrails, parse
from tests.unit.serve.support import SURFACE
from tests.unit.serve.test_policy import RAMP, TWO, policy
from triton_models.errors import PolicyError

LIMITS = Guardrails(
    minimum_sample=100,
    max_fallback_share=0.1,
    max_error_share=0.02,
    max_added_p99_ms=5.0,
    metrics={"successful_session": {"minimum_lift": -0.01}, "hide": {"maximum_lift": 0.0}},
)


@pytest.mark.parametrize(
    ("tally", "limit"),
    [
        ({"requests": 100}, None),
        ({"requests": 99, "fallbacks": 99, "errors": 99, "slow": 99}, None),  # too few to say anything
        ({"requests": 100, "fallbacks": 10}, None),  # at the limit is not beyond it
        ({"requests": 100, "fallbacks": 11}, "fallback_share"),
        ({"requests": 100, "errors": 2}, None),
        ({"requests": 100, "errors": 3}, "error_share"),
        ({"requests": 200, "slow": 2}, None),  # the 99th percentile is still within
        ({"requests": 200, "slow": 3}, "added_p99_ms"),
        ({"requests": 100, "errors": 3, "fallbacks": 90}, "error_share"),
    ],
)
def test_traffic(tally: dict[str, int], limit: str | None) -> None:
    crossed = breach(LIMITS, Tally(**tally), {})
    assert (crossed.limit if crossed else None) == limit
    assert crossed is None or str(tally["requests"]) in crossed.reason


def report(metric: str, low: float, high: float) -> MetricReport:
    return MetricReport(policy_version=7, metric=metric, lift=(low + high) / 2, interval=(low, high))


@pytest.mark.parametrize(
    ("metric", "low", "high", "crossed"),
    [
        ("successful_session", -0.05, -0.02, True),
        ("successful_session", -0.05, -0.01, False),  # the loss may be no more than the limit
        ("successful_session", -0.05, 0.01, False),
        ("hide", 0.001, 0.02, True),
        ("hide", -0.02, 0.02, False),
        ("hide", -0.9, -0.8, False),
        ("repin", -0.9, -0.8, False),  # no limit for it
    ],
)
def test_reported_metrics(metric: str, low: float, high: float, crossed: bool) -> None:
    found = breach(LIMITS, Tally(), {metric: report(metric, low, high)})
    assert (found is not None) == crossed
    assert found is None or (found.limit == "metric" and metric in found.reason)


def test_limits_that_are_not_set() -> None:
    off = Guardrails(minimum_sample=1, max_fallback_share=None, max_error_share=None)
    assert breach(off, Tally(requests=9, fallbacks=9, errors=9, slow=9), {}) is None


def test_bad_reports() -> None:
    for changes in ({"interval": [1, 0]}, {"lift": float("nan")}, {"policy_version": -1}):
        data = {"policy_version": 7, "metric": "hide", "lift": 0.0, "interval": [0, 0], **changes}
        with pytest.raises(PolicyError):
            parse(MetricReport, data, source="report")


@given(st.lists(st.floats(0, 300), max_size=60).map(sorted), st.floats(0, 60))
def test_a_window_forgets(moments: list[float], later: float) -> None:
    """Everything of the last window is counted, nothing older than a window and a bucket."""
    window = Window(60.0)
    for moment in moments:
        window.add(moment)
    now = (moments[-1] if moments else 0.0) + later
    count = window.tally(now).requests
    assert sum(m > now - 60.0 + 5.0 for m in moments) <= count <= sum(m > now - 60.0 - 5.0 for m in moments)


def assigned(**changes: Any) -> Assignment:
    data = {"arm": "new", "kind": "scalarization", "scalarization_M": None, "policy_version": 7, **changes}
    return Assignment(**{"ramped": True, **data})


def fallback(reason: Reason) -> Any:
    return production(SURFACE, reason)


def test_only_the_ramped_arm_of_the_policy_in_force_is_watched() -> None:
    watch = RampWatch()
    limits = {"minimum_sample": 10, "max_fallback_share": 0.5}
    watch.begin(policy(arms=TWO, ramp=RAMP, guardrails=limits))
    for other in ({"ramped": False}, {"kind": "exploration"}, {"policy_version": 6}):
        for _ in range(50):
            watch.record(0.0, assigned(**other), fallback("late"))
    for _ in range(50):
        watch.record(0.0, assigned(), fallback("control_off"))
    assert watch.breach(7, 0.0) is None
    for _ in range(10):
        watch.record(0.0, assigned(), fallback("late"))
    crossed = watch.breach(7, 0.0)
    assert crossed is not None
    assert crossed.reason.startswith("10 of 10 requests")
    assert watch.breach(8, 0.0) is None
    watch.begin(policy(arms=TWO, ramp=RAMP, guardrails=limits, version=8))
    assert watch.breach(8, 0.0) is None


@pytest.mark.parametrize("reason", REASONS)
def test_which_fallbacks_a_policy_is_blamed_for(reason: Reason) -> None:
    watch = RampWatch()
    watch.begin(policy(arms=TWO, ramp=RAMP, guardrails={"minimum_sample": 1, "max_fallback_share": 0.5}))
    watch.record(0.0, assigned(), fallback(reason))
    callers_own = reason in ("control_off", "state_incomplete", "state_invalid")
    assert (watch.breach(7, 0.0) is None) == callers_own


def test_a_limit_is_judged_by_the_traffic_of_all_replicas() -> None:
    """Two replicas with 6 requests each, 10 needed; one is healthy: 5 of 12 fell back."""
    ramped = policy(arms=TWO, ramp=RAMP, guardrails={"minimum_sample": 10, "max_fallback_share": 0.4})
    here, there = RampWatch(), RampWatch()
    for watch, late in ((here, 5), (there, 0)):
        watch.begin(ramped)
        for number in range(6):
            watch.record(100.0, assigned(), fallback("late") if number < late else static(SURFACE))
        assert watch.breach(7, 100.0) is None  # too few to say anything
    for watch, other in ((here, there), (there, here)):
        told = other.told(7, 101.0)
        assert told is not None
        watch.hear(7, [told, "not ours", "[[1]]"])
        watch.hear(7, [told])  # the last word of a replica replaces the one before
        crossed = watch.breach(7, 101.0)
        assert crossed is not None
        assert crossed.reason.startswith("5 of 12 requests")
        shown = watch.describe(101.0)
        assert shown is not None
        assert (shown["requests"], shown["fallbacks"], shown["replicas"]) == (12, 5, 2)
    for number in range(10):  # a window later what was heard has left it as our own has
        here.record(170.0, assigned(), fallback("late") if number < 4 else static(SURFACE))
    assert here.breach(7, 170.0) is None
    here.hear(8, [told])
    assert here.told(8, 170.0) is None
    here.begin(ramped.model_copy(update={"version": 8}))  # heard of the other policy: nothing is left
    assert here.describe(170.0) == {
        **Tally().__dict__,
        "replicas": 1,
        "metrics": [],
    }


def test_errors_waits_and_reports() -> None:
    watch = RampWatch()
    limits = {"minimum_sample": 2, "max_added_p99_ms": 5.0, "metrics": {"repin": {"minimum_lift": 0.0}}}
    watch.begin(policy(arms=TWO, ramp=RAMP, guardrails=limits))
    watch.record(0.0, assigned(), static(SURFACE), added_s=0.004)
    watch.record(0.0, assigned(), static(SURFACE), added_s=0.006)
    crossed = watch.breach(7, 1.0)
    assert crossed is not None
    assert crossed.limit == "added_p99_ms"
    assert watch.breach(7, 100.0) is None
    assert not watch.report(report("repin", -2, -1).model_copy(update={"policy_version": 6}))
    assert watch.report(report("repin", -2, -1))
    assert watch.breach(7, 100.0) is not None
    watch.begin(policy())
    assert not watch.report(report("repin", -2, -1))  # nothing is ramped


def test_without_a_ramp_nothing_is_watched() -> None:
    watch = RampWatch()
    watch.begin(policy(guardrails={"minimum_sample": 1}))
    for _ in range(10):
        watch.record(0.0, assigned(), None)
    assert watch.breach(7, 0.0) is None
    assert watch.describe(0.0) is None
