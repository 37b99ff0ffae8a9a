"""The parts of all worlds → means over worlds, each with Student's interval and the worlds' own values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.paper.correlation import over_worlds
from benchmarks.paper.over_seeds import mean_with_interval
from benchmarks.paper.parts import Part
from benchmarks.paper.points import EVERYBODY
from benchmarks.paper.settings import GROUPS, OPERATING_POINTS, Group
from triton_models.files import or_null

SIDES = ("offline", "online", "truth")
SETS = ("sweep", "near", "tested")
CORRELATED = ("online", "truth", "tests")
"""Offline and A/B, offline and truth, A/B and truth."""


@dataclass(frozen=True, kw_only=True)
class Mean:
    """A figure over worlds."""

    value: float
    interval: tuple[float, float] | None
    worlds: tuple[float, ...]

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "mean": or_null(self.value),
            "interval": self.interval,
            "worlds": [or_null(x) for x in self.worlds],
        }


def mean_of(values: Iterable[float | None]) -> Mean:
    """Over the worlds that have a value."""
    found = tuple(math.nan if value is None else float(value) for value in values)
    value, interval = mean_with_interval(found)
    return Mean(value=value, interval=interval, worlds=found)


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Everything that tables and sentences are made of."""

    objectives: tuple[str, ...]
    outcomes: tuple[str, ...]
    cohorts: tuple[str, ...]
    seeds: tuple[int, ...]
    alpha: dict[str, Mean]
    """By operating point."""
    lifts: dict[tuple[str, str, str, str], Mean]
    """By (everybody or cohort, operating point, side, outcome)."""
    static: dict[tuple[str, str, str], Mean]
    """By (operating point, what, outcome); what: online, truth, personalized_over_static."""
    static_weights: dict[tuple[str, str], Mean]
    """By (operating point, head)."""
    correlation: dict[tuple[str, str, str], Mean]
    """By (set of points, one of :data:`CORRELATED`, objective)."""
    error: dict[tuple[str, str], Mean]
    """Mean absolute error of offline lifts against the truth, by (set of points, objective)."""
    better: Mean
    """Points of the sweep that are truly above production on every objective."""
    response: dict[str, Mean]
    """How much a cohort's true lifts change between the leaning points, mean over the objectives."""
    ablation: dict[Group, Mean]
    """Captured share of the personalization gain, mean over α."""
    contribution: dict[str, Mean]
    """Share of production's utility, by head."""
    p2p_range: tuple[Mean, Mean]
    """Share of the last controlled head at the ends of its range."""
    few: dict[str, Mean]
    """Share of requests with at most one engagement, by kind."""


def summarize(points: Sequence[Part], feeds: Sequence[Part], ablations: Sequence[Part]) -> Summary:
    """Means over worlds."""
    first = points[0]
    objectives, outcomes = tuple(first["objectives"]), tuple(first["outcomes"])
    cohorts = tuple(name for name in first["groups"] if name != EVERYBODY)
    lifts = {
        (group, label, side, outcome): mean_of(
            part["groups"][group][side]["lift"][part["labels"][label]][r] for part in points
        )
        for group in (EVERYBODY, *cohorts)
        for label in OPERATING_POINTS
        for side in SIDES
        for r, outcome in enumerate(outcomes)
    }
    return Summary(
        objectives=objectives,
        outcomes=outcomes,
        cohorts=cohorts,
        seeds=tuple(part["seed"] for part in points),
        alpha={
            label: mean_of(part["alphas"][part["labels"][label]] for part in points)
            for label in OPERATING_POINTS
        },
        lifts=lifts,
        static={
            (label, what, outcome): mean_of(part["matched_static"][label][what]["lift"][r] for part in points)
            for label in OPERATING_POINTS
            for what in ("online", "truth", "personalized_over_static")
            for r, outcome in enumerate(outcomes)
        },
        static_weights={
            (label, head): mean_of(part["matched_static"][label]["weights"][head] for part in points)
            for label in OPERATING_POINTS
            for head in first["weights"]
        },
        correlation={
            (name, side, objective): _correlation(part["correlation"][name][side][m] for part in points)
            for name in SETS
            for side in CORRELATED
            for m, objective in enumerate(objectives)
        },
        error={
            (name, objective): mean_of(part["correlation"][name]["error"][m] for part in points)
            for name in SETS
            for m, objective in enumerate(objectives)
        },
        better=mean_of(_better(part) for part in points),
        response={cohort: _response(points, cohort, len(objectives)) for cohort in cohorts},
        ablation={
            group: mean_of(float(np.mean(part["captured"])) for part in ablations if part["group"] == group)
            for group in GROUPS
        },
        contribution={
            head: mean_of(feed["contribution"]["production"][h] for feed in feeds)
            for h, head in enumerate(feeds[0]["heads"])
        },
        p2p_range=_ends(feeds, tuple(first["weights"])[-1]),
        few={
            kind: mean_of(sum(feed["engagement"][kind][:2]) for feed in feeds)
            for kind in feeds[0]["engagement"]
        },
    )


def _correlation(values: Iterable[float | None]) -> Mean:
    found = tuple(math.nan if value is None else float(value) for value in values)
    value, interval = over_worlds([x for x in found if math.isfinite(x)] or [math.nan])
    return Mean(value=value, interval=interval, worlds=found)


def _response(points: Sequence[Part], cohort: str, objectives: int) -> Mean:
    found = []
    for part in points:
        lift = np.array(part["groups"][cohort]["truth"]["lift"], dtype=np.float64)[:, :objectives]
        ends = [part["labels"][label] for label in (OPERATING_POINTS[0], OPERATING_POINTS[-1])]
        found.append(float(np.abs(lift[ends[1]] - lift[ends[0]]).mean()))
    return mean_of(found)


def _better(part: Part) -> int:
    lift = np.array(part["groups"][EVERYBODY]["truth"]["lift"], dtype=np.float64)
    return int((lift[:, : len(part["objectives"])] > 0).all(axis=1).sum())


def _ends(feeds: Sequence[Part], head: str) -> tuple[Mean, Mean]:
    low, high = (mean_of(feed["contribution"]["ranges"][head]["share"][i] for feed in feeds) for i in (0, -1))
    return low, high
