"""One world from its log to its A/B tests: the part behind Tables 1 to 3 and most pictures."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.feed import config as c
from benchmarks.feed.world import World
from benchmarks.paper import online
from benchmarks.paper.correlation import near, online_interval, pearson
from benchmarks.paper.logged import fitted, logged_rows, make_world
from benchmarks.paper.offline import frontier_of
from benchmarks.paper.online import Lifts, UserSums
from benchmarks.paper.parts import Part
from benchmarks.paper.settings import PaperSettings, operating_points
from ray_train.estimators import FloatArray
from ray_train.frontier_page import render_page
from triton_models.files import write_atomically
from triton_models.frontier import Estimate, Frontier, write_frontier

EVERYBODY = "everybody"
Say = Callable[[str], None]


def points_part(settings: PaperSettings, seed: int, folder: Path, say: Say) -> Part:
    """Log, fit, sweep, test; also writes the world's frontier and its page."""
    world = make_world(settings, seed)
    surface = world.surface
    say(f"seed {seed}: {settings.train_rows:,} logged rows, fitting {settings.learner} …")
    rows = logged_rows(world, 0, settings.train_rows)
    network = fitted(surface, rows, learner=settings.learner, seed=seed)
    del rows
    say(
        f"seed {seed}: sweep of {settings.points} points over {settings.requests - settings.train_rows:,} "
        "rows …"
    )
    frontier = frontier_of(world, network, settings)
    write_frontier(folder / "frontiers" / f"frontier-{seed}.json", frontier)
    write_atomically(folder / "frontiers" / f"frontier-{seed}.html", render_page(frontier))
    lift_PR = _offline(frontier, None).lift_PR
    labels = operating_points(lift_PR[:, : len(surface.objectives)])
    static = [_mean_weights(frontier, p) for p in labels.values()]
    say(f"seed {seed}: A/B tests and truth on {settings.test_requests:,} new requests …")
    sums = online.observe(
        world,
        network,
        scalarization_PM=settings.sweep.scalarizations(surface),
        static=static,
        first=settings.requests,
        count=settings.test_requests,
        progress=_Shares(settings.test_requests, lambda text: say(f"seed {seed}: {text}")),
    )
    return _figures(world, settings, frontier, sums, labels, static)


class _Shares:
    """A line at every quarter."""

    def __init__(self, total: int, say: Say) -> None:
        self._total, self._say, self._done = total, say, 0

    def __call__(self, count: int) -> None:
        before, self._done = self._done, self._done + count
        if 4 * before // self._total != 4 * self._done // self._total:
            self._say(f"{self._done:,} of {self._total:,} requests served")


def _figures(
    world: World,
    settings: PaperSettings,
    frontier: Frontier,
    sums: UserSums,
    labels: dict[str, int],
    static: list[FloatArray],
) -> Part:
    surface, points = world.surface, settings.points
    objectives = len(surface.objectives)
    users = len(sums.requests_U)
    policies = points + len(static)
    treated_PU = np.stack([online.treated(sums.seed, p, users) for p in range(policies)])
    sum_UP2R2 = online.ab_sums(sums, treated_PU)
    tested, true = online.ab_tests(sum_UP2R2), online.truth(sums)
    offline = _offline(frontier, None)
    groups: dict[str, dict[str, Any]] = {
        EVERYBODY: _group(_first(offline, points), _first(tested, points), _first(true, points))
    }
    for cohort in surface.cohorts:
        mine = sums.cohort_U == c.COHORTS.index(cohort)
        part = sums.select(mine)
        groups[cohort] = _group(
            _offline(frontier, cohort),
            _first(online.ab_tests(sum_UP2R2[mine]), points),
            _first(online.truth(part), points),
        ) | {"share": float(part.requests_U.sum() / sums.requests_U.sum())}
    matched = {
        label: {
            "weights": dict(zip(surface.controlled_heads, static[i].tolist(), strict=True)),
            "online": _policy(tested, points + i),
            "truth": _policy(true, points + i),
            # Policy number p is at p - 1 among the lifts, which leave production out.
            "personalized_over_static": _policy(online.truth(sums, baseline=1 + points + i), p),
        }
        for i, (label, p) in enumerate(labels.items())
    }
    return {
        "seed": sums.seed,
        "outcomes": list(world.outcomes),
        "objectives": list(surface.objectives),
        "alphas": settings.sweep.scalarizations(surface)[:, 1].tolist(),
        "labels": labels,
        "groups": groups,
        "matched_static": matched,
        "weights": {
            head: sorted(set(surface.actions[:, w].tolist()))
            for w, head in enumerate(surface.controlled_heads)
        },
        "actions": surface.actions.tolist(),
        "chosen": sums.action_PA.tolist(),
        "correlation": _correlation(offline, tested, true, sum_UP2R2, labels, objectives, sums.seed),
        "holdout_rows": frontier.window.rows,
        "estimator": frontier.estimator.name,
    }


def _correlation(
    offline: Lifts,
    tested: Lifts,
    true: Lifts,
    sum_UP2R2: FloatArray,
    labels: dict[str, int],
    objectives: int,
    seed: int,
) -> dict[str, Any]:
    """r of offline and online over three sets of points, per objective."""
    points = len(offline.lift_PR)
    sets = {
        "sweep": np.arange(points),
        "near": near(labels, points),
        "tested": np.array(list(labels.values())),
    }
    found: dict[str, Any] = {}
    for name, which in sets.items():
        off_PM = offline.lift_PR[which, :objectives]
        interval_M2 = online_interval(off_PM, sum_UP2R2[:, which, :, :objectives], seed=seed)
        found[name] = {
            "points": len(which),
            "online": [pearson(off_PM[:, m], tested.lift_PR[which, m]) for m in range(objectives)],
            "online_interval": interval_M2.tolist(),
            "truth": [pearson(off_PM[:, m], true.lift_PR[which, m]) for m in range(objectives)],
            "tests": [pearson(tested.lift_PR[which, m], true.lift_PR[which, m]) for m in range(objectives)],
            "error": [float(np.abs(off_PM[:, m] - true.lift_PR[which, m]).mean()) for m in range(objectives)],
        }
    return found


def _offline(frontier: Frontier, cohort: str | None) -> Lifts:
    points = frontier.points_of(cohort)
    return Lifts(
        lift_PR=np.array([[lift for lift, _ in _outcomes(point)] for point in points], dtype=np.float64),
        interval_PR2=np.array([[bounds for _, bounds in _outcomes(point)] for point in points]),
    )


def _outcomes(point: Estimate) -> list[tuple[float, tuple[float, float]]]:
    """Lift and interval of every outcome; NaN where the logs cannot tell."""
    nothing = (math.nan, math.nan)
    pairs = [(lift, point.intervals[name]) for name, lift in point.lifts.items()]
    pairs += [(metric.lift, metric.interval) for metric in point.metrics.values()]
    return [(math.nan if lift is None else lift, bounds or nothing) for lift, bounds in pairs]


def _mean_weights(frontier: Frontier, p: int) -> FloatArray:
    named = frontier.points_of(None)[p].mean_weights
    return np.array([named[head] for head in frontier.surface_object.controlled_heads])


def _first(lifts: Lifts, count: int) -> Lifts:
    return Lifts(lift_PR=lifts.lift_PR[:count], interval_PR2=lifts.interval_PR2[:count])


def _group(offline: Lifts, tested: Lifts, true: Lifts) -> dict[str, Any]:
    return {"offline": _plain(offline), "online": _plain(tested), "truth": _plain(true)}


def _plain(lifts: Lifts) -> dict[str, Any]:
    return {"lift": nulls(lifts.lift_PR), "interval": nulls(lifts.interval_PR2)}


def _policy(lifts: Lifts, p: int) -> dict[str, Any]:
    return {"lift": nulls(lifts.lift_PR[p]), "interval": nulls(lifts.interval_PR2[p])}


def nulls(values: npt.NDArray[np.float64]) -> Any:
    """Nested lists for strict JSON: null for NaN."""
    plain = values.astype(object)
    plain[~np.isfinite(values)] = None
    return plain.tolist()
