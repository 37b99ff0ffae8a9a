"""What callers saw of a fault, from the records of the load and the times of the injector. Pure.

An episode is a fault-free control window, the fault, and the time after it. ``began_s`` is when the fault
was put in, ``works_s`` when what was broken worked again by its own account (a real inference, an answered
health check): recovery counts from there. All on the one monotonic clock.

Only requests that were due inside an episode count for it. A request that was under way when the fault
began counts as during the fault if its answer came later than ``began_s``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from benchmarks.load.records import Array, Records

Concerns = Literal["value_network", "ranker", "sidecar", "store", "log", "policy", "nothing"]
"""Whose fault it is. Only the ranker's and the sidecar's own may cost a ranking."""

OPEN_REASON = "breaker_open"
"""Reason of answers for which the value network was not asked."""

RANKER_REFUSALS = (
    "503 ranker_unavailable",
    "503 ranker_late",
    "503 ranker_overloaded",
    "503 ranker_invalid_answer",
    "503 ranker_refused",
)
"""How the sidecar says that there is no ranking because there were no scores."""

CHOSEN = "value_network"
RUN_OF_ANSWERS = 20
BACK_SHARE = 0.9


@dataclass(frozen=True, kw_only=True)
class Episode:
    """When a fault was there."""

    name: str
    title: str
    concerns: Concerns
    control_s: float
    """Begin of the fault-free window before it."""
    began_s: float
    works_s: float
    ended_s: float
    """End of the time after it."""
    supervised: bool = False
    """Nobody but our own supervisor mends it: recovery counts from ``began_s``."""
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Window:
    """Latency and sources of a stretch of time."""

    requests: int
    p50_ms: float | None
    p99_ms: float | None
    chosen: float | None
    """Share of right answers that the value network chose."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What callers saw of a fault."""

    episode: Episode
    """The first one."""
    episodes: int
    """How often it was put in."""
    requests: int
    refused: int
    """503 with a reason that names the ranker."""
    failed: int
    """Anything else that was no right answer."""
    problems: Mapping[str, int]
    reasons: Mapping[str, int]
    """Fallbacks of the fault and after it, by reason."""
    before: Window
    during: Window
    """From the fault to when it works again."""
    open: Window
    """The part of it in which the value network is not waited for any more."""
    after: Window
    detected_s: float | None
    """From the fault to the first answer that did not wait for the value network."""
    back_s: float | None
    """From when it works again (supervised: from the fault) until it is in use again."""
    retried: int


def judge(records: Records, *episodes: Episode) -> Outcome:
    """The requests of a fault's episodes, taken apart: windows hold those of all, times are the slowest's."""
    parts = [_Part.of(records, episode) for episode in episodes]
    faulty = records.where(_any(part.faulty for part in parts))
    wrong = ~faulty.ok
    refusals = np.isin(faulty["problem"], [faulty.code(word) for word in RANKER_REFUSALS]) & wrong
    return Outcome(
        episode=episodes[0],
        episodes=len(episodes),
        requests=len(faulty),
        refused=int(refusals.sum()),
        failed=int((wrong & ~refusals).sum()),
        problems=faulty.counts("problem"),
        reasons=faulty.counts("reason"),
        before=window(records.where(_any(part.before for part in parts))),
        during=window(records.where(_any(part.during for part in parts))),
        open=window(records.where(_any(part.open for part in parts))),
        after=window(records.where(_any(part.after for part in parts))),
        detected_s=_slowest([part.detected_s for part in parts]),
        back_s=_slowest([part.back_s for part in parts]),
        retried=int((faulty["retries"] > 0).sum()),
    )


@dataclass(frozen=True, kw_only=True)
class _Part:
    """Which requests belong to what of one episode."""

    faulty: Array
    before: Array
    during: Array
    open: Array
    after: Array
    detected_s: float | None
    back_s: float | None

    @classmethod
    def of(cls, records: Records, episode: Episode) -> _Part:
        due_s, ended_s = records["due_s"], records["ended_s"]
        mine = (due_s >= episode.control_s) & (due_s < episode.ended_s)
        faulty = mine & (ended_s >= episode.began_s)
        during = faulty & (due_s < episode.works_s)
        opened = due_s[faulty & (records["reason"] == records.code(OPEN_REASON))]
        opened_s = float(opened.min()) if len(opened) else None
        return cls(
            faulty=faulty,
            before=mine & (ended_s < episode.began_s),
            during=during,
            open=during & (due_s >= (np.inf if opened_s is None else opened_s)),
            after=faulty & (due_s >= episode.works_s),
            detected_s=None if opened_s is None else opened_s - episode.began_s,
            back_s=_back(records.where(faulty), episode),
        )


def _any(masks: Iterable[Array]) -> Array:
    return np.asarray(np.logical_or.reduce(list(masks)))


def _slowest(seconds: Sequence[float | None]) -> float | None:
    """None if it never happened in one of them."""
    known = [s for s in seconds if s is not None]
    return max(known) if len(known) == len(seconds) else None


def window(records: Records) -> Window:
    """Latency and sources of some requests; None where there are none."""
    right = records.where(records.ok)
    if not len(right):
        return Window(requests=len(records), p50_ms=None, p99_ms=None, chosen=None)
    p50, p99 = np.quantile(right.latency_ms, [0.5, 0.99])
    chosen = float((right["source"] == right.code(CHOSEN)).mean())
    return Window(requests=len(records), p50_ms=float(p50), p99_ms=float(p99), chosen=chosen)


def _back(records: Records, episode: Episode) -> float | None:
    """The first moment from which the next answers are the value network's again, nearly all of them."""
    base_s = episode.began_s if episode.supervised else episode.works_s
    later = records.where((records["due_s"] >= base_s) & records.ok)
    order = np.argsort(later["due_s"], kind="stable")
    due, chosen = later["due_s"][order], later["source"][order] == later.code(CHOSEN)
    if len(chosen) < RUN_OF_ANSWERS:
        return None
    share = np.convolve(chosen, np.ones(RUN_OF_ANSWERS) / RUN_OF_ANSWERS, mode="valid")
    good = np.flatnonzero((share >= BACK_SHARE) & chosen[: len(share)])
    if episode.supervised:
        # It may be used for a moment after the fault began: back means after it was away.
        gone = np.flatnonzero(share < 1.0 - BACK_SHARE)
        good = good[good > gone[0]] if len(gone) else good
    return float(due[good[0]] - base_s) if len(good) else None


@dataclass(frozen=True)
class Timeline:
    """Requests in bins of time, for the picture."""

    at_s: Array
    """Middle of each bin, seconds from the first."""
    rate_per_s: Array
    p99_ms: Array
    fallback: Array
    """Share of right answers that the value network did not choose."""
    failed_per_s: Array


def timeline(records: Records, *, bin_s: float = 0.5) -> Timeline:
    """Bins by due time; NaN where there was no right answer."""
    start = records.began_s
    number = ((records["due_s"] - start) / bin_s).astype(np.int64)
    bins = int(number.max(initial=0)) + 1
    ok, ms = records.ok, records.latency_ms
    fallen = ok & (records["source"] != records.code(CHOSEN))
    right = np.bincount(number[ok], minlength=bins)
    p99 = np.full(bins, np.nan)
    order = np.argsort(number, kind="stable")
    edges = np.searchsorted(number[order], np.arange(bins + 1))
    for b in range(bins):
        inside = order[edges[b] : edges[b + 1]]
        values = ms[inside][ok[inside]]
        if len(values):
            p99[b] = np.quantile(values, 0.99)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.bincount(number[fallen], minlength=bins) / right
    return Timeline(
        at_s=(np.arange(bins) + 0.5) * bin_s,
        rate_per_s=right / bin_s,
        p99_ms=p99,
        fallback=share,
        failed_per_s=np.bincount(number[~ok], minlength=bins) / bin_s,
    )


def fault_free(records: Records, episodes: Sequence[Episode]) -> Window:
    """All control windows together: what the p99 of a fault is compared with."""
    due = records["due_s"]
    mask = np.zeros(len(records), dtype=bool)
    for episode in episodes:
        mask |= (due >= episode.control_s) & (records["ended_s"] < episode.began_s)
    return window(records.where(mask))
