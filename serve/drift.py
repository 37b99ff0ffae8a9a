"""Has the ranker, or who comes, changed so much that a policy no longer means what it was chosen for? Pure.

The utility is ``u = Σ_i w_i h_i`` (arXiv 2605.16344, Eq. 1): a refreshed ranker, whose heads have another
distribution, makes the same weights mean something else (Section 5.4). The value network never sees a head,
so only the sidecar can notice. Three kinds of figures, each ≥ 0 and read against the same two limits:

    score:<head>         PSI of the controlled head's scores over the candidates of the requests in a window,
                         against a reference (:mod:`triton_models.stability`)
    weight:<head>        |mean chosen weight - the frontier's| / (maximum - minimum of the grid)
    value:<objective>    |mean predicted value / the frontier's - 1|

The reference is the sidecar's own: logs hold no scores, so neither ``fit`` nor ``sweep`` could know them.
What the frontier says is weighted as the requests are: each by the point of its scalarization and cohort.
Scores at the upper limit invalidate the policy; the other two say that other people come, or that another
network answers, than those the frontier was made with, which is for a person to judge.

Shape legend: H controlled heads, B bins, W controlled weights (= H), M objectives, n candidates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

from triton_models.stability import FloatArray, bin_counts, population_stability, quantile_edges
from triton_models.surface import Surface

Level = Literal["ok", "warn", "act"]

LEVELS: tuple[Level, ...] = ("ok", "warn", "act")

BACK = 0.8
"""A level is left again below this share of its limit: an index that hovers tells its tale once."""

PARTS = 12
"""Parts of a window; it moves on by one of them at a time."""

MOST_CANDIDATES = 64
"""Scores of so many candidates of a request are counted, evenly from first to last."""

SCORE, WEIGHT, VALUE = "score:", "weight:", "value:"

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Seconds = Annotated[float, Field(ge=0, le=31 * 86_400, allow_inf_nan=False)]


class DriftConfig(BaseModel):
    """When a change is called one, and what follows from it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    enabled: bool = True
    warn: Positive = 0.1
    act: Positive = 0.25
    """From here on static weights are recommended until a run is fitted on newer logs."""
    on_limit: Literal["warn", "static"] = "warn"
    """static: when scores reach ``act``, static weights are put in force as a policy of their own, once for
    each reference: who goes back on it has the last word. Exploration goes on, for the next run's logs."""
    reference_requests: Annotated[int, Field(ge=1, le=100_000)] = 5000
    """Requests that the reference is made of, at least."""
    reference_s: Seconds = 3600.0
    """And seconds. A day (86400) where scores follow the time of day."""
    window_s: Annotated[float, Field(gt=0, le=31 * 86_400)] = 900.0
    minimum_requests: Annotated[int, Field(ge=1)] = 500
    """Requests of the window below which nothing is said."""
    check_s: Annotated[float, Field(ge=0.01, le=60)] = 1.0
    """How often a replica counts up, off the request path."""
    requests_per_check: Annotated[int, Field(ge=1, le=10_000)] = 50
    """Requests kept for that; the others of the interval are not looked at."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.act < self.warn:
            raise ValueError(f"drift.act {self.act} is below drift.warn {self.warn}")
        return self


class Reference(BaseModel):
    """The scores that a ranker gave when all was well: plain data, kept with the policies."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    heads: tuple[str, ...]
    edges: tuple[tuple[float, ...], ...]
    """Of each head's bins."""
    counts: tuple[tuple[int, ...], ...]
    requests: Annotated[int, Field(ge=1)]

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        lengths = [
            (len(edges) + 1, len(counts)) for edges, counts in zip(self.edges, self.counts, strict=True)
        ]
        if len(lengths) != len(self.heads) or any(edges != counts for edges, counts in lengths):
            raise ValueError("a reference needs one more count than edges, for each of its heads")
        return self


@dataclass(frozen=True, kw_only=True)
class Promise:
    """What the frontier says of a request's operating point."""

    weights_W: FloatArray
    values_M: FloatArray | None


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One request, as far as drift is concerned."""

    scores_nH: npt.NDArray[Any] | None
    """Of the controlled heads, :func:`thinned`; None: nothing was ranked."""
    weights_W: FloatArray | None = None
    """The value network's choice; None: it did not choose."""
    values_M: FloatArray | None = None
    promise: Promise | None = None


@dataclass
class Counts:
    """Sums over requests. Those of two parts of a window, or of two replicas, add up."""

    bins: list[npt.NDArray[np.int64]]
    ranked: int = 0
    promised: int = 0
    weights_2W: FloatArray | float = 0.0
    """Chosen, promised."""
    valued: int = 0
    values_2M: FloatArray | float = 0.0
    """Predicted, promised."""

    @classmethod
    def empty(cls, edges: tuple[tuple[float, ...], ...]) -> Counts:
        """Nothing yet."""
        return cls(bins=[np.zeros(len(edges_E) + 1, dtype=np.int64) for edges_E in edges])

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            bins=[mine + theirs for mine, theirs in zip(self.bins, other.bins, strict=True)],
            ranked=self.ranked + other.ranked,
            promised=self.promised + other.promised,
            weights_2W=self.weights_2W + other.weights_2W,
            valued=self.valued + other.valued,
            values_2M=self.values_2M + other.values_2M,
        )


def thinned(scores_nH: npt.NDArray[Any], columns_H: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """The controlled heads' scores of some candidates, copied: an answer does not stay in memory for them."""
    return scores_nH[:: -(-len(scores_nH) // MOST_CANDIDATES)][:, columns_H]


def by_head(seen: list[Seen]) -> list[FloatArray]:
    """The finite scores of each head; empty if nothing was ranked."""
    kept = [s.scores_nH for s in seen if s.scores_nH is not None]
    if not kept:
        return []
    scores_NH = np.concatenate(kept).astype(np.float64, copy=False)
    return [column[np.isfinite(column)] for column in scores_NH.T]


def count(edges: tuple[tuple[float, ...], ...], seen: list[Seen]) -> Counts:
    """Count requests up."""
    counts = Counts.empty(edges)
    counts.ranked = sum(s.scores_nH is not None for s in seen)
    counts.bins = [bin_counts(*pair) for pair in zip(edges, by_head(seen), strict=False)] or counts.bins
    for s in seen:
        if s.promise is None or s.weights_W is None:
            continue
        counts.promised += 1
        counts.weights_2W = counts.weights_2W + np.stack([s.weights_W, s.promise.weights_W])
        if s.promise.values_M is not None and s.values_M is not None:
            counts.valued += 1
            counts.values_2M = counts.values_2M + np.stack([s.values_M, s.promise.values_M])
    return counts


class Collector:
    """Makes a reference out of the first requests: bins from the first of them, counts from all."""

    def __init__(self, heads: tuple[str, ...], config: DriftConfig, begun_s: float) -> None:
        self._heads = heads
        self._config = config
        self._begun_s = begun_s
        self._first: list[Seen] = []
        self._edges: tuple[tuple[float, ...], ...] | None = None
        self._counts: Counts | None = None

    @property
    def requests(self) -> int:
        """Requests so far."""
        return len(self._first) if self._counts is None else self._counts.ranked

    def add(self, seen: list[Seen], now_s: float) -> Reference | None:
        """Add requests; the reference, once there are enough of them for long enough."""
        ranked = [s for s in seen if s.scores_nH is not None]
        if self._edges is None:
            self._first += ranked
            if len(self._first) < self._config.reference_requests:
                return None
            self._edges = tuple(tuple(quantile_edges(v).tolist()) for v in by_head(self._first))
            ranked, self._first = self._first, []
        counted = count(self._edges, ranked)
        self._counts = counted if self._counts is None else self._counts + counted
        if now_s - self._begun_s < self._config.reference_s:
            return None
        return Reference(
            heads=self._heads,
            edges=self._edges,
            counts=tuple(tuple(bins.tolist()) for bins in self._counts.bins),
            requests=self._counts.ranked,
        )


class Window:
    """Counts over the last ``window_s``, give or take one part of it."""

    def __init__(self, edges: tuple[tuple[float, ...], ...], window_s: float) -> None:
        self.edges = edges
        self._width_s = window_s / PARTS
        # Replaced whole, never changed: answers are read from it while the thread counts.
        self._parts: tuple[tuple[int, Counts], ...] = ()

    def add(self, seen: list[Seen], now_s: float) -> None:
        """Count requests."""
        number = int(now_s // self._width_s)
        counted = count(self.edges, seen)
        before = self._parts
        if before and before[-1][0] == number:
            before, counted = before[:-1], before[-1][1] + counted
        self._parts = (*(part for part in before if part[0] > number - PARTS), (number, counted))

    def forget_promises(self) -> None:
        """Keep the scores; what was chosen and promised is no more to be compared."""
        self._parts = tuple((number, Counts(bins=c.bins, ranked=c.ranked)) for number, c in self._parts)

    def total(self, now_s: float) -> Counts:
        """The counts at a moment."""
        oldest = int(now_s // self._width_s) - PARTS
        recent = [counts for number, counts in self._parts if number > oldest]
        return sum(recent, start=Counts.empty(self.edges))


def indices(surface: Surface, reference: Reference, counts: Counts, least: int) -> dict[str, float]:
    """What is known of drift by name; figures of fewer than ``least`` requests are left out."""
    found: dict[str, float] = {}
    if counts.ranked >= least:
        for head, expected, seen in zip(reference.heads, reference.counts, counts.bins, strict=True):
            found[SCORE + head] = population_stability(expected, seen)
    if counts.promised >= least:
        chosen_W, promised_W = np.asarray(counts.weights_2W) / counts.promised
        for weight, chosen, promised in zip(surface.controlled, chosen_W, promised_W, strict=True):
            span = weight.maximum - weight.minimum
            found[WEIGHT + weight.head] = abs(float(chosen - promised)) / span
    if counts.valued >= least:
        predicted_M, promised_M = np.asarray(counts.values_2M)
        for objective, predicted, promised in zip(surface.objectives, predicted_M, promised_M, strict=True):
            if promised > 0:
                found[VALUE + objective] = abs(float(predicted / promised) - 1.0)
    return found


def level_after(before: Level, index: float, config: DriftConfig) -> Level:
    """The level of an index: up at a limit at once, down again below ``BACK`` of it."""
    held = LEVELS.index(before)
    if index >= config.act * (BACK if held == 2 else 1.0):
        return "act"
    return "warn" if index >= config.warn * (BACK if held >= 1 else 1.0) else "ok"


def levels_after(
    before: Mapping[str, Level], found: Mapping[str, float], config: DriftConfig
) -> dict[str, Level]:
    """The levels of all indices."""
    return {name: level_after(before.get(name, "ok"), index, config) for name, index in found.items()}


def worst(levels: Mapping[str, Level], kind: str = "") -> Level:
    """The highest level of the indices of a kind."""
    return max((v for name, v in levels.items() if name.startswith(kind)), key=LEVELS.index, default="ok")


def recommendation(
    found: Mapping[str, float], levels: Mapping[str, Level], config: DriftConfig
) -> str | None:
    """What to do, in one sentence; None: nothing."""
    if worst(levels) == "ok":
        return None
    shown = ", ".join(f"{name} {found[name]:.2f}" for name, level in levels.items() if level != "ok")
    limits = f"{shown} (warn {config.warn:g}, act {config.act:g})"
    if worst(levels, SCORE) == "act":
        return (
            f"{limits}: the ranker's scores are not those that the policy was chosen beside; use static "
            "weights until a run is fitted on newer logs"
        )
    if worst(levels) == "act":
        return (
            f"{limits}: what is served is not what the frontier says; sweep again on newer logs, and look "
            "whether the served network is the frontier's"
        )
    return f"{limits}: watch it; python -m ray_train validate --run says whether rewards have changed"
