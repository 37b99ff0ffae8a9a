from __future__ import annotations

import random
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ray_train.attribution import Attributed, Attribution, MetricRule, attribute
from tests.support.surfaces import small_surface
from triton_models.decision_format import event_schema

SURFACE = small_surface()  # objectives repin and p2p, metric successful_session
T = datetime(2026, 5, 1, 12, tzinfo=UTC)
AS_OF = T + timedelta(days=10)


def rules(**changed: Any) -> Attribution:
    return Attribution(**({"as_of": AS_OF, "window": timedelta(hours=1)} | changed))


def decisions(*rows: tuple[str, float]) -> pa.Table:
    """(request id, seconds after T), in the order in which they were logged."""
    return pa.table(
        {
            "request_id": pa.array([name for name, _ in rows], pa.string()),
            "timestamp": pa.array([T + timedelta(seconds=s) for _, s in rows], pa.timestamp("us", tz="UTC")),
            "position": pa.array(range(len(rows)), pa.int64()),
        }
    )


def events(*rows: tuple[str, float, str, float, str | None]) -> pa.Table:
    """(request id, seconds after T, name, value, event id)."""
    return pa.Table.from_pylist(
        [
            {
                "request_id": request,
                "timestamp": T + timedelta(seconds=s),
                "event": name,
                "value": value,
                "event_id": identity,
            }
            for request, s, name, value, identity in rows
        ],
        schema=event_schema(),
    )


def found(some: pa.Table, happened: pa.Table, **changed: Any) -> Attributed:
    return attribute(SURFACE, rules(**changed), some, happened)


def test_a_decision_without_an_event_has_zeros() -> None:
    result = found(decisions(("a", 0)), events())
    assert result.rewards_nM.tolist() == [[0, 0]]
    assert result.metrics_nK.tolist() == [[0.0]]


@pytest.mark.parametrize(
    ("seconds", "fate"),
    [
        (-0.001, "before_decision"),
        (0, "counted"),
        (3600, "counted"),
        (3600.001, "late"),
        (7200, "late"),
        (7200.001, "after_window"),
    ],
)
def test_the_window_is_closed_at_both_ends(seconds: float, fate: str) -> None:
    result = found(decisions(("a", 0)), events(("a", seconds, "repin", 1, None)))
    assert +result.event_counts == Counter({fate: 1})
    assert result.rewards_nM[0, 0] == (fate == "counted")


def test_counts_add_up_and_objectives_are_apart() -> None:
    happened = events(
        ("a", 1, "repin", 1, None),
        ("a", 2, "repin", 2, None),
        ("a", 3, "p2p", 1, None),
        ("b", 1, "p2p", 1, None),
    )
    assert found(decisions(("a", 0), ("b", 0)), happened).rewards_nM.tolist() == [[3, 1], [0, 1]]


def test_repeated_events_count_once() -> None:
    happened = events(
        ("a", 1, "repin", 1, "e1"),
        ("a", 2, "repin", 1, "e1"),  # sent again with another time: the first stays
        ("a", 5, "p2p", 1, None),
        ("a", 5, "p2p", 1, None),  # the same row again
        ("a", 6, "p2p", 1, None),
        ("b", 1, "repin", 1, "e1"),  # another request's
    )
    result = found(decisions(("a", 0), ("b", 0)), happened)
    assert result.rewards_nM.tolist() == [[1, 2], [1, 0]]
    assert +result.event_counts == Counter({"counted": 4, "duplicate": 2})


def test_of_a_request_logged_twice_the_first_decision_stays() -> None:
    some = decisions(("a", 100), ("a", 0), ("b", 0), ("b", 0))
    result = found(some, events(("a", 50, "repin", 1, None)))
    assert result.decisions.column("position").to_pylist() == [1, 2]
    assert result.rewards_nM[:, 0].tolist() == [1, 0]
    assert result.decision_counts["duplicate"] == 2


def test_open_requests_are_left_for_the_next_run() -> None:
    some = decisions(("old", -1), ("closed", 0), ("open", 1))
    happened = events(*((name, 2, "repin", 1, None) for name in ("old", "closed", "open", "never")))
    closed = T + timedelta(hours=2)  # window and late limit
    result = found(some, happened, as_of=closed, after=T)
    assert result.decisions.column("request_id").to_pylist() == ["closed"]
    assert +result.decision_counts == Counter({"kept": 1, "open": 1, "before_start": 1})
    assert +result.event_counts == Counter({"counted": 1, "of_other_run": 2, "unknown_request": 1})


def test_the_next_run_takes_up_where_this_one_stopped() -> None:
    some = decisions(*((f"r{i}", i * 600) for i in range(40)))
    seen: list[str] = []
    after = None
    for hours in (3, 4, 8, 24):
        now = rules(as_of=T + timedelta(hours=hours), after=after)
        seen += attribute(SURFACE, now, some, events()).decisions.column("request_id").to_pylist()
        after = now.next_after
    assert sorted(seen) == sorted(f"r{i}" for i in range(40))


@pytest.mark.parametrize(
    ("rule", "with_events", "without"),
    [("mean", 0.25, 0.0), ("any", 1.0, 0.0), ("sum", 0.5, 0.0), ("measured", 0.25, None)],
)
def test_metric_rules(rule: str, with_events: float, without: float | None) -> None:
    happened = events(("a", 1, "successful_session", 0.5, None), ("a", 2, "successful_session", 0, None))
    metrics = {"successful_session": MetricRule(rule)}
    a, b = found(decisions(("a", 0), ("b", 0)), happened, metrics=metrics).metrics_nK[:, 0]
    assert a == with_events
    assert np.isnan(b) if without is None else b == without


def test_rules_that_make_no_sense() -> None:
    for changed in (
        {"window": timedelta(0)},
        {"late_limit": timedelta(seconds=-1)},
        {"after": AS_OF},
    ):
        with pytest.raises(ValidationError):
            rules(**changed)


# ------------------------------------------------------------------------------------ against a naive join

NAMES = st.sampled_from(["repin", "p2p", "successful_session"])
REQUESTS = st.sampled_from([f"r{i}" for i in range(6)])
SECONDS = st.integers(-4000, 12_000)
DECISIONS = st.lists(st.tuples(REQUESTS, st.integers(-2000, 5000)), max_size=12, unique_by=lambda row: row)
EVENTS = st.lists(
    st.tuples(REQUESTS, SECONDS, NAMES, st.integers(0, 2), st.sampled_from([None, "e0", "e1", "e2"])),
    max_size=40,
)


def naive(some: list[Any], happened: list[Any], rule: Attribution) -> dict[str, tuple[list[int], float]]:
    """The same by dictionaries: closed request → rewards and metric."""
    first: dict[str, float] = {}
    for request, s in some:
        first[request] = min(s, first.get(request, s))
    unique: dict[Any, Any] = {}
    for row in sorted(happened, key=lambda row: (row[1], row[2], row[3])):
        request, _, _, _, identity = row
        unique.setdefault((request, identity) if identity else row, row)
    closed = {r: s for r, s in first.items() if T + timedelta(seconds=s) <= rule.closed_until}
    result = {}
    for request, s in closed.items():
        values: dict[str, list[float]] = {"repin": [], "p2p": [], "successful_session": []}
        for row in unique.values():
            if row[0] == request and 0 <= row[1] - s <= rule.window.total_seconds():
                values[row[2]].append(row[3])
        session = values["successful_session"]
        result[request] = (
            [int(sum(values["repin"])), int(sum(values["p2p"]))],
            sum(session) / len(session) if session else 0.0,
        )
    return result


def as_dict(parts: list[Attributed]) -> dict[str, tuple[list[int], float]]:
    return {
        request: (part.rewards_nM[i].tolist(), float(part.metrics_nK[i, 0]))
        for part in parts
        for i, request in enumerate(part.decisions.column("request_id").to_pylist())
    }


@settings(max_examples=150)
@given(DECISIONS, EVENTS, st.integers(0, 1000), st.integers(1, 4))
def test_any_order_any_repetition_any_partition_is_the_naive_join(
    some: list[Any], happened: list[Any], seed: int, parts: int
) -> None:
    rule = rules(as_of=T + timedelta(hours=3))
    expected = naive(some, happened, rule)
    shuffled = random.Random(seed)
    again = [row for row in happened if row[4] is not None and shuffled.random() < 0.5]
    mixed, many = shuffled.sample(some, len(some)), [*happened, *again]
    shuffled.shuffle(many)

    def part(i: int) -> Attributed:
        own = [row for row in mixed if int(row[0][1:]) % parts == i]
        return attribute(
            SURFACE, rule, decisions(*own), events(*(r for r in many if int(r[0][1:]) % parts == i))
        )

    found = [part(i) for i in range(parts)]
    assert as_dict(found) == expected
    fates = sum((part.event_counts for part in found), Counter[str]())
    assert fates.total() == len(many)
    logged = sum((part.decision_counts for part in found), Counter[str]())
    assert logged.total() == len(some)
