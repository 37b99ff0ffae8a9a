"""Did the world change so much that a run's policy is out of date?

A policy is fitted to how rewards answer to the weights. A new ranker, whose heads have other scales,
makes the same weights mean something else (arXiv 2605.16344, Section 5.4). Exploration logs show it
without knowing the ranker: for every day they give

    level     ℓ_m     = mean of r_m / (A p)                        mean reward under uniform weights
    contrast  c_{b,m} = mean of r_m φ_b(a) / (A p)                 how the reward answers to weights, b ≥ 1
    state     x̄_f     = mean of the state's digest                 who comes, with what history

with the orthonormal functions φ_b of the weights (:mod:`ray_train.estimators_basis`). Days are the
independent units: two windows are compared by Welch's t over their daily figures, Holm's correction over
everything that is looked at, and a change counts only if it is also large enough to matter.

Levels and state may drift with the season and leave the order of the actions alone; a changed contrast means
that the policy answers a question that is no longer asked. So a changed contrast invalidates the policy, the
others are told.

Shape legend: D days, M objectives, B functions, F features of the digest, A actions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from ray_train.estimators import FloatArray
from ray_train.estimators_basis import ActionBasis

Kind = Literal["level", "contrast", "state"]

FAMILY_ERROR = 0.01
"""Chance of calling anything changed where nothing is."""
LEAST_EFFECT: dict[Kind, float] = {"level": 0.05, "contrast": 0.25, "state": 0.2}
"""Smallest change that counts: level relative to itself, contrast relative to the length of the objective's
contrasts, state in standard deviations between requests."""
LEAST_DAYS = 3


@dataclass(frozen=True, kw_only=True)
class DayFigures:
    """Daily means of one window, days in order."""

    rows_D: npt.NDArray[np.int64]
    level_DM: FloatArray
    contrast_DBM: FloatArray
    """Functions b ≥ 1."""
    state_DF: FloatArray
    spread_F: FloatArray
    """Standard deviation of the digest between requests."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data that :meth:`from_dict` reads back."""
        return {name: values.tolist() for name, values in vars(self).items()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Out of plain data.

        Raises:
            ValueError: it is something else.
        """
        names = {field.name for field in fields(cls)}
        if set(data) != names:
            raise ValueError(f"expected {', '.join(sorted(names))}, got {', '.join(sorted(data))}")
        arrays: dict[str, Any] = {name: np.asarray(values, np.float64) for name, values in data.items()}
        return cls(**{**arrays, "rows_D": arrays["rows_D"].astype(np.int64)})


class DayTotals:
    """Sums by day, fed with rows in any order; memory grows with days only."""

    def __init__(self, basis: ActionBasis) -> None:
        self._basis = basis
        self._days: dict[np.datetime64, list[FloatArray]] = {}

    def add(
        self,
        day_N: npt.NDArray[np.datetime64],
        action_N: npt.NDArray[np.integer],  # type: ignore[type-arg]
        propensity_N: FloatArray,
        reward_NM: npt.NDArray[np.floating],  # type: ignore[type-arg]
        digest_NF: npt.NDArray[np.floating],  # type: ignore[type-arg]
    ) -> None:
        """Add rows."""
        size = len(self._basis.values_AB)
        weight_N = 1.0 / (size * np.asarray(propensity_N, dtype=np.float64))
        answer_NBM = (self._basis.values_AB[action_N] * weight_N[:, None])[:, :, None] * reward_NM[:, None]
        digest_NF = np.asarray(digest_NF, dtype=np.float64)
        for day in np.unique(day_N):
            mine = day_N == day
            parts = [
                np.array([mine.sum()], dtype=np.float64),
                answer_NBM[mine].sum(axis=0),
                digest_NF[mine].sum(axis=0),
                (digest_NF[mine] ** 2).sum(axis=0),
            ]
            held = self._days.get(day)
            self._days[day] = parts if held is None else [a + b for a, b in zip(held, parts, strict=True)]

    def figures(self) -> DayFigures:
        """Daily means.

        Raises:
            ValueError: there are no rows.
        """
        if not self._days:
            raise ValueError("no rows were added")
        ordered = [self._days[day] for day in sorted(self._days)]
        rows_D = np.array([parts[0][0] for parts in ordered])
        answer_DBM = np.stack([parts[1] for parts in ordered]) / rows_D[:, None, None]
        state_DF = np.stack([parts[2] for parts in ordered])
        square_F = np.sum([parts[3] for parts in ordered], axis=0) / rows_D.sum()
        mean_F = state_DF.sum(axis=0) / rows_D.sum()
        return DayFigures(
            rows_D=rows_D.astype(np.int64),
            level_DM=answer_DBM[:, 0],
            contrast_DBM=answer_DBM[:, 1:],
            state_DF=state_DF / rows_D[:, None],
            spread_F=np.sqrt(np.maximum(square_F - mean_F**2, 0.0)),
        )


@dataclass(frozen=True, kw_only=True)
class Change:
    """One figure that is not what it was."""

    kind: Kind
    name: str
    effect: float
    """In the units of :data:`LEAST_EFFECT`."""
    p_value: float
    """After Holm's correction."""


@dataclass(frozen=True, kw_only=True)
class Drift:
    """What changed between two windows."""

    days: tuple[int, int]
    looks: int
    changes: tuple[Change, ...]
    enough: bool
    """Both windows have days enough to tell."""

    @property
    def invalidates(self) -> bool:
        """Whether the rewards answer to the weights otherwise than the policy was taught."""
        return any(change.kind == "contrast" for change in self.changes)

    def sentence(self) -> str:
        """The verdict, with what to do."""
        if not self.enough:
            return f"too few days to tell ({self.days[0]} then, {self.days[1]} now; {LEAST_DAYS} are needed)"
        named = "; ".join(
            f"{change.kind} {change.name} {change.effect:+.2f} (p = {change.p_value:.2g})"
            for change in self.changes[:5]
        )
        if self.invalidates:
            return (
                f"the rewards answer to the weights otherwise than in the training window: {named}. The "
                "ranker or the feed was changed: use static weights until a run is fitted on newer logs"
            )
        if self.changes:
            return f"the policy still fits; what changed beside it: {named}"
        return f"no change in {self.looks} figures beyond what days differ by"


def compare(then: DayFigures, now: DayFigures, objectives: Sequence[str]) -> Drift:
    """Compare two windows of one surface."""
    days = (len(then.rows_D), len(now.rows_D))
    if min(days) < LEAST_DAYS:
        return Drift(days=days, looks=0, changes=(), enough=False)
    looks: list[tuple[Kind, str, float, float]] = []
    length_M = np.maximum(np.linalg.norm(then.contrast_DBM.mean(axis=0), axis=0), 1e-12)
    for m, name in enumerate(objectives):
        level = max(float(then.level_DM[:, m].mean()), 1e-12)
        looks.append(("level", name, *_welch(then.level_DM[:, m], now.level_DM[:, m], level)))
        for b in range(then.contrast_DBM.shape[1]):
            pair = then.contrast_DBM[:, b, m], now.contrast_DBM[:, b, m]
            looks.append(("contrast", f"{name} {b + 1}", *_welch(*pair, float(length_M[m]))))
    for f, spread in enumerate(then.spread_F):
        if spread > 0:
            looks.append(
                ("state", f"feature {f}", *_welch(then.state_DF[:, f], now.state_DF[:, f], float(spread)))
            )
    corrected = holm([look[3] for look in looks])
    changes = [
        Change(kind=kind, name=name, effect=effect, p_value=p)
        for (kind, name, effect, _), p in zip(looks, corrected, strict=True)
        if p < FAMILY_ERROR and abs(effect) >= LEAST_EFFECT[kind]
    ]
    order = {"contrast": 0, "level": 1, "state": 2}
    changes.sort(key=lambda change: (order[change.kind], change.p_value))
    return Drift(days=days, looks=len(looks), changes=tuple(changes), enough=True)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (1979): family-wise, under any dependence."""
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def _welch(then_D: FloatArray, now_D: FloatArray, unit: float) -> tuple[float, float]:
    """Change in the given unit, and its two-sided p by Welch's t over days."""
    change = float(now_D.mean() - then_D.mean())
    parts = [float(days.var(ddof=1)) / len(days) for days in (then_D, now_D)]
    noise = sum(parts)
    if noise <= 0:
        return change / unit, 1.0 if abs(change) < 1e-12 * unit else 0.0
    freedom = noise**2 / sum(
        part**2 / (len(days) - 1) for part, days in zip(parts, (then_D, now_D), strict=True)
    )
    return change / unit, student_tail(change / math.sqrt(noise), freedom)


def student_tail(t: float, freedom: float) -> float:
    """``P(|T| > |t|)`` of Student's t, by the incomplete beta function's continued fraction."""
    return _incomplete_beta(freedom / 2.0, 0.5, freedom / (freedom + t * t))


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """Regularised ``I_x(a, b)`` (Lentz's method; Press et al., *Numerical Recipes*, 6.4)."""
    if x <= 0.0 or x >= 1.0:
        return float(x >= 1.0)
    if x > (a + 1.0) / (a + b + 2.0):
        return 1.0 - _incomplete_beta(b, a, 1.0 - x)
    front = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    )
    tiny, fraction, c, d = 1e-300, 1.0, 1.0, 0.0
    for i in range(400):
        m = i // 2
        if i == 0:
            term = 1.0
        elif i % 2 == 0:
            term = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        else:
            term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        d = 1.0 / (d_next if abs(d_next := 1.0 + term * d) > tiny else tiny)
        c = c_next if abs(c_next := 1.0 + term / c) > tiny else tiny
        fraction *= c * d
        if abs(1.0 - c * d) < 1e-12:
            break
    return front * (fraction - 1.0) / a
