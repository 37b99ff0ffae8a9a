"""The empirical Pareto frontier: non-dominated points, hypervolume, and the candidates for a test.

All objectives are maximised. Points are rows of an array [P, M] of estimated lifts (or values: both give
the same order); rows with NaN, which the logs cannot value, are never on the frontier.

Source of the candidates: arXiv 2605.16344, Section 6.3 (an extreme per objective, the knee, and points
that degrade nothing). Non-dominated sorting and hypervolume are moocore's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import moocore
import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

KNEE = "knee"
NON_DEGRADING = "non_degrading"


def leaning(objective: str) -> str:
    """Label of the point that is best on one objective."""
    return f"{objective}_leaning"


@dataclass(frozen=True)
class Choice:
    """A point picked as a candidate."""

    label: str
    point: int
    reason: str


def non_dominated(points_PM: FloatArray) -> npt.NDArray[np.bool_]:
    """Which points no other point beats: at least as good everywhere and better somewhere, [P].

    Equal points do not dominate each other.
    """
    front_P = np.isfinite(points_PM).all(axis=1)
    if front_P.any():
        known = np.ascontiguousarray(points_PM[front_P])
        front_P[front_P] = moocore.is_nondominated(known, maximise=True, keep_weakly=True)
    return np.asarray(front_P)


def hypervolume(points_PM: FloatArray) -> float | None:
    """Volume between the origin (production's lifts) and the points that beat it on every objective."""
    known = points_PM[np.isfinite(points_PM).all(axis=1)]
    if not len(known):
        return None
    reference = np.zeros(points_PM.shape[1])
    return float(moocore.hypervolume(np.ascontiguousarray(known), ref=reference, maximise=True))


def lattice(objectives: int, points: int, *, low: float = 0.0, high: float = 1.0) -> FloatArray:
    """Scalarizations λ of a sweep, [P, M], each on the simplex.

    M = 1: the one λ. M = 2: ``λ = (1 - α, α)`` (Eq. 5) with ``points`` values of α from ``low`` to
    ``high``. M > 2: the simplex lattice of Das & Dennis (1998), all λ whose entries are multiples of
    1/H, with the H that comes nearest to ``points``, binomial(H + M - 1, M - 1) of them.
    """
    if objectives == 1:
        return np.ones((1, 1))
    if objectives == 2:
        alpha = np.linspace(low, high, points)
        return np.stack([1.0 - alpha, alpha], axis=1)
    divisions = _nearest_divisions(objectives, points)
    return np.array(_compositions(divisions, objectives), dtype=np.float64) / divisions


def _nearest_divisions(objectives: int, points: int) -> int:
    divisions = 1
    while True:
        here, above = (math.comb(h + objectives - 1, objectives - 1) for h in (divisions, divisions + 1))
        if above - points >= points - here:
            return divisions
        divisions += 1


def _compositions(total: int, parts: int) -> list[tuple[int, ...]]:
    if parts == 1:
        return [(total,)]
    return [
        (first, *rest) for first in range(total, -1, -1) for rest in _compositions(total - first, parts - 1)
    ]


def choose_candidates(
    lift_PM: FloatArray,
    front_P: npt.NDArray[np.bool_],
    objectives: tuple[str, ...],
    lower_PM: FloatArray | None = None,
) -> list[Choice]:
    """The extreme of each objective, the knee (M > 1), and the best non-degrading point if there is one.

    Chosen by the lower ends of the lifts' bands: what looks best of many is mostly what was lucky, and a
    point that is known badly must not win by its width. Without bands on the whole frontier, by the lifts.
    """
    front = np.flatnonzero(front_P)
    if not len(front):
        return []
    cautious = lower_PM is not None and bool(np.isfinite(lower_PM[front]).all())
    by_PM = lower_PM if cautious and lower_PM is not None else lift_PM
    end = " at the lower end" if cautious else ""
    choices = [
        Choice(leaning(name), int(front[np.argmax(by_PM[front, m])]), f"largest lift of {name}{end}")
        for m, name in enumerate(objectives)
    ]
    if len(objectives) > 1:
        knee = int(front[np.argmax(bulge(by_PM[front]))])
        choices.append(Choice(KNEE, knee, f"farthest from the chord between the extremes{end}"))
    safe = front[(by_PM[front] >= 0).all(axis=1)]
    if len(safe):
        best = int(safe[np.argmax(by_PM[safe].min(axis=1))])
        reason = f"no objective below production{end}, and the lowest lift is the highest"
        choices.append(Choice(NON_DEGRADING, best, reason))
    return choices


def bulge(front_FM: FloatArray) -> FloatArray:
    """Signed distance of frontier points from the chord between the extremes, in normalised lifts, [F].

    Each objective is min-max normalised over the frontier. For two objectives the chord joins (1, 0) and
    (0, 1); for M it is the hyperplane ``n·z = 1`` through the M extremes, or ``Σ z = 1`` where they do
    not span one with n ≥ 0. Positive is outwards, away from the origin.
    """
    low, high = front_FM.min(axis=0), front_FM.max(axis=0)
    span = np.where(high > low, high - low, 1.0)
    z_FM = (front_FM - low) / span
    normal = _chord_normal(z_FM[z_FM.argmax(axis=0)])
    return np.asarray((z_FM @ normal - 1.0) / np.linalg.norm(normal))


def _chord_normal(extreme_MM: FloatArray) -> FloatArray:
    objectives = len(extreme_MM)
    if np.linalg.cond(extreme_MM) < 1e8:
        normal = np.linalg.solve(extreme_MM, np.ones(objectives))
        if (normal >= 0).all():
            return normal
    return np.ones(objectives)
