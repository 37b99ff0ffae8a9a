"""What a frontier allows to say, in one honest sentence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from triton_models.frontier import Frontier, Point

Level = Literal["better", "trade-off", "nothing"]


@dataclass(frozen=True)
class Verdict:
    """The sentence, and how good the news is."""

    level: Level
    text: str


def verdict(frontier: Frontier) -> Verdict:
    """Judge everybody's points by their simultaneous bands (by single intervals in files of version 1).

    * ``better``: some point's lifts have lower bounds ≥ 0 on every objective and > 0 on one;
    * ``trade-off``: some interval excludes zero upwards, but no such point exists;
    * ``nothing``: no lift is distinguishable from production's upwards.
    """
    points = frontier.points_of(None)
    total = len(points)
    better = sum(_better(point) for point in points)
    up = sum(any(_above(point, name) for name in point.lifts) for point in points)
    if better:
        return Verdict(
            "better",
            f"{better} of {total} operating points: above production on at least one objective and not below "
            f"it on any, at the lower end of the intervals.{_caution(frontier)}",
        )
    if up:
        return Verdict(
            "trade-off",
            f"{up} of {total} operating points raise an objective beyond the interval, but none without a "
            f"possible loss on another: these logs show a trade-off, not a free gain.{_caution(frontier)}",
        )
    return Verdict(
        "nothing",
        "No operating point is distinguishable from production on these logs: no interval lies above zero. "
        "Collect more exploration logs, or keep the production weights.",
    )


def _caution(frontier: Frontier) -> str:
    points, objectives = len(frontier.points_of(None)), len(frontier.surface_object.objectives)
    looks = points * objectives
    if looks == 1:
        return ""
    if frontier.points_of(None)[0].simultaneous is not None:
        return (
            f" The bands hold for all {frontier.estimator.looks or looks} lifts at once. A candidate must "
            "also beat its matched static weights; confirm a choice in an A/B test."
        )
    by_chance = (1.0 - frontier.estimator.confidence) / 2.0 * looks
    return (
        f" Each interval is for one look; among {looks} looks ({points} points, {objectives} objectives) "
        f"about {by_chance:.1f} would lie above zero by chance alone, and in groups, since neighbouring "
        "points share rows: confirm a choice in an A/B test."
    )


def _better(point: Point) -> bool:
    return point.lower_bounds_not_negative() and any(_above(point, name) for name in point.lifts)


def _above(point: Point, objective: str) -> bool:
    bounds = point.bands()[objective]
    return bounds is not None and bounds[0] > 0
