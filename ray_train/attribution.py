"""Which events belong to which decision, and what they add up to. Pure; one hash partition at a time.

For a decision at ``t`` and an event of the same request at ``e``, the event counts if

    0 ≤ e - t ≤ window

and ``reward_m = Σ values of the events called m``. Everything else is counted and dropped, each event once,
under the first reason of :class:`EventFate` that applies. A request is *closed*, so that no later event can
change it, when ``t + window + late_limit ≤ as_of``; requests that are still open are left for the next run.

A decision without an event has reward zero: nothing happened, and that is known. Metrics follow the rule
that was asked for by name, see :class:`MetricRule`.

Shape legend: n kept decisions, e events, R outcomes (objectives, then metrics), M objectives.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field, model_validator

from ray_train import columns
from triton_models.surface import Surface

Mask = npt.NDArray[np.bool_]
LARGEST_COUNT = np.iinfo(np.int32).max


class MetricRule(StrEnum):
    """What a metric is, given the values of its events in the window."""

    MEAN = "mean"
    """Mean of the values; 0 without an event. An event without a value has 1: then it says whether."""
    ANY = "any"
    """1 if there is an event, else 0, whatever the values."""
    SUM = "sum"
    """Sum of the values; 0 without an event."""
    MEASURED = "measured"
    """Mean of the values; null without an event: it was not measured."""


class DecisionFate(StrEnum):
    """What became of a logged decision. Each is counted once, under the first that applies."""

    INVALID = "invalid"
    """No request id, no timestamp, or one before the year 1."""
    DUPLICATE = "duplicate"
    """An earlier decision has its request id (the first of both files and rows, at the same instant)."""
    BEFORE = "before_start"
    """Earlier than ``after``: an earlier run has it."""
    OPEN = "open"
    """Its window, with the late limit, is not over at ``as_of``: for the next run."""
    KEPT = "kept"


class EventFate(StrEnum):
    """What became of an event. Each is counted once, under the first that applies."""

    OTHER = "other_name"
    """Neither an objective nor a metric of the surface."""
    INVALID = "invalid"
    """No request id, no timestamp, one before the year 1, a value that is not finite, or an objective's that
    is no count."""
    DUPLICATE = "duplicate"
    """The same event_id again, or without one the same request, instant, name and value."""
    UNKNOWN = "unknown_request"
    """No logged decision has its request id."""
    ELSEWHERE = "of_other_run"
    """Of a decision that is before the start or still open."""
    EARLY = "before_decision"
    """Earlier than the decision."""
    LATE = "late"
    """After the window, by the late limit at most."""
    PAST = "after_window"
    """Later still."""
    COUNTED = "counted"


class Attribution(BaseModel):
    """How events are attributed; frozen, and recorded with every result."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    as_of: datetime
    """The events are complete up to here (UTC)."""
    window: timedelta = timedelta(hours=24)
    """Longest time from a decision to an event of it."""
    late_limit: timedelta = timedelta(hours=1)
    """How long after the window's end a request still waits for events that come late."""
    after: datetime | None = None
    """Only decisions from here on (UTC): where the run before ended."""
    metrics: dict[str, MetricRule] = Field(default_factory=dict)
    """Rule by metric; those not named have ``mean``."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.window <= timedelta(0):
            raise ValueError(f"the attribution window must be longer than nothing, got {self.window}")
        if self.late_limit < timedelta(0):
            raise ValueError(f"the late limit must not be negative, got {self.late_limit}")
        if self.after is not None and self.after > self.closed_until:
            raise ValueError(
                f"nothing is closed: decisions from {self.after.isoformat()} on, but only those before "
                f"{self.closed_until.isoformat()} have had their window and the late limit"
            )
        return self

    @property
    def closed_until(self) -> datetime:
        """Decisions up to here, this instant included, are closed."""
        return self.as_of - self.window - self.late_limit

    @property
    def next_after(self) -> datetime:
        """The ``after`` of the next run, which takes up where this one stops."""
        return self.closed_until + timedelta(microseconds=1)

    def closed(self, t_n: npt.NDArray[Any]) -> Mask:
        """Which decision times are from ``after`` on and closed."""
        return ~_before(t_n, self.after) & (t_n <= _instant(self.closed_until))

    def rule(self, metric: str) -> MetricRule:
        """The metric's rule."""
        return self.metrics.get(metric, MetricRule.MEAN)


@dataclass(frozen=True, kw_only=True)
class Attributed:
    """The closed decisions of one partition, with what happened after them."""

    decisions: pa.Table
    """Sorted by request id; the columns that came in."""
    rewards_nM: npt.NDArray[np.int64]
    metrics_nK: npt.NDArray[np.float64]
    """NaN where a metric was not measured."""
    events_n: npt.NDArray[np.int64]
    """Events counted."""
    decision_counts: Counter[str]
    event_counts: Counter[str]


def attribute(surface: Surface, rules: Attribution, decisions: pa.Table, events: pa.Table) -> Attributed:
    """Join the decisions and events of some requests.

    Args:
        surface: objectives and metrics.
        rules: window, limits, metric rules.
        decisions: ``request_id``, ``timestamp``, ``position`` (int64, the order in which they were logged),
            and any other columns; all rows of their requests.
        events: ``request_id``, ``timestamp``, ``event`` (objectives and metrics only), ``value`` (finite),
            ``event_id`` (nullable); all rows of their requests.
    """
    first, duplicates = _first_decisions(decisions)
    t_n = columns.instants(columns.column(first, "timestamp"))
    early_n = _before(t_n, rules.after)
    keep_n = rules.closed(t_n)
    open_n = ~early_n & ~keep_n
    sums_nR, counts_nR, fates = _outcomes(surface, rules, first, t_n, keep_n, events)
    decision_counts = Counter(
        {
            DecisionFate.DUPLICATE.value: duplicates,
            DecisionFate.BEFORE.value: int(early_n.sum()),
            DecisionFate.OPEN.value: int(open_n.sum()),
            DecisionFate.KEPT.value: int(keep_n.sum()),
        }
    )
    objectives = len(surface.objectives)
    return Attributed(
        decisions=first.filter(pa.array(keep_n)),
        rewards_nM=np.minimum(sums_nR[keep_n, :objectives], LARGEST_COUNT).astype(np.int64),
        metrics_nK=_metrics(surface, rules, sums_nR[keep_n, objectives:], counts_nR[keep_n, objectives:]),
        events_n=counts_nR[keep_n].sum(axis=1),
        decision_counts=decision_counts,
        event_counts=fates,
    )


def _first_decisions(decisions: pa.Table) -> tuple[pa.Table, int]:
    """One decision per request, the first; and how many more there were."""
    order = [("request_id", "ascending"), ("timestamp", "ascending"), ("position", "ascending")]
    keys = decisions.select(["request_id", "timestamp", "position"])
    index = pc.sort_indices(keys, sort_keys=order)
    first = ~_same_as_before(columns.column(decisions, "request_id").take(index))
    return decisions.take(index.filter(pa.array(first))), int((~first).sum())


def _outcomes(
    surface: Surface,
    rules: Attribution,
    first: pa.Table,
    t_n: npt.NDArray[Any],
    keep_n: Mask,
    events: pa.Table,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64], Counter[str]]:
    """Sum of values and number of events by decision and outcome, [n, R]; and the events' fates."""
    events, duplicates = _distinct_events(events)
    names = pa.array((*surface.objectives, *surface.metrics), pa.large_string())
    ids = columns.strings(columns.column(first, "request_id"))
    owner_e = _position(columns.strings(columns.column(events, "request_id")), ids)
    outcome_e = _position(columns.strings(columns.column(events, "event")), names)
    lag_e = np.full(len(owner_e), np.timedelta64(0, "us"))
    known_e = owner_e >= 0
    e_e = columns.instants(columns.column(events, "timestamp"))
    lag_e[known_e] = e_e[known_e] - t_n[owner_e[known_e]]
    window, limit = np.timedelta64(rules.window, "us"), np.timedelta64(rules.late_limit, "us")
    elsewhere_e = np.zeros(len(owner_e), dtype=bool)
    elsewhere_e[known_e] = ~keep_n[owner_e[known_e]]
    inside_e = known_e & ~elsewhere_e
    fates = {
        EventFate.UNKNOWN: ~known_e,
        EventFate.ELSEWHERE: elsewhere_e,
        EventFate.EARLY: inside_e & (lag_e < np.timedelta64(0, "us")),
        EventFate.LATE: inside_e & (lag_e > window) & (lag_e <= window + limit),
        EventFate.PAST: inside_e & (lag_e > window + limit),
        EventFate.COUNTED: inside_e & (lag_e >= np.timedelta64(0, "us")) & (lag_e <= window),
    }
    counts = Counter({fate.value: int(mask.sum()) for fate, mask in fates.items()})
    counts[EventFate.DUPLICATE.value] = duplicates
    used, shape = fates[EventFate.COUNTED], (first.num_rows, len(names))
    cell = owner_e[used] * len(names) + outcome_e[used]
    value = columns.floats(columns.column(events, "value"), np.float64)[used]
    size = first.num_rows * len(names)
    sums = np.asarray(np.bincount(cell, weights=value, minlength=size), dtype=np.float64)
    return sums.reshape(shape), np.bincount(cell, minlength=size).reshape(shape), counts


def _distinct_events(events: pa.Table) -> tuple[pa.Table, int]:
    """Events without repetitions, in an order that does not depend on how they came; and how many more."""
    names = ["request_id", "event_id", "timestamp", "event", "value"]
    events = events.take(pc.sort_indices(events, sort_keys=[(name, "ascending") for name in names]))
    same = {name: _same_as_before(columns.column(events, name)) for name in names}
    identity = np.asarray(pc.is_valid(columns.column(events, "event_id")))
    by_id = same["request_id"] & same["event_id"] & identity
    by_row = same["request_id"] & same["timestamp"] & same["event"] & same["value"]
    again = by_id | (by_row & ~identity & same["event_id"])
    return events.filter(pa.array(~again)), int(again.sum())


def _same_as_before(array: pa.Array) -> Mask:
    """Whether each entry equals the one before it; two nulls are equal."""
    same = np.zeros(len(array), dtype=bool)
    if len(array) > 1:
        one, two = array.slice(1), array.slice(0, len(array) - 1)
        nulls = pc.and_(pc.is_null(one), pc.is_null(two))
        same[1:] = np.asarray(pc.or_(pc.fill_null(pc.equal(one, two), False), nulls))
    return same


def _position(values: pa.Array, among: pa.Array) -> npt.NDArray[np.int64]:
    """Where each value is in ``among``; -1 where it is not."""
    return np.asarray(pc.fill_null(pc.index_in(values, value_set=among), -1)).astype(np.int64)


def _metrics(
    surface: Surface, rules: Attribution, sum_nK: npt.NDArray[Any], count_nK: npt.NDArray[Any]
) -> npt.NDArray[np.float64]:
    values = np.zeros(sum_nK.shape)
    for k, name in enumerate(surface.metrics):
        rule, happened = rules.rule(name), count_nK[:, k] > 0
        if rule is MetricRule.ANY:
            values[:, k] = happened
        elif rule is MetricRule.SUM:
            values[:, k] = sum_nK[:, k]
        else:
            absent = np.nan if rule is MetricRule.MEASURED else 0.0
            values[:, k] = np.where(happened, sum_nK[:, k] / np.maximum(count_nK[:, k], 1), absent)
    return values


def _before(t_n: npt.NDArray[Any], start: datetime | None) -> Mask:
    return np.zeros(len(t_n), dtype=bool) if start is None else np.asarray(t_n < _instant(start))


def _instant(moment: datetime) -> np.datetime64:
    return np.datetime64(moment.replace(tzinfo=None), "us")
