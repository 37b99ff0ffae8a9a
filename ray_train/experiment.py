"""Sums over users → what the experiment showed. Pure functions; nothing here touches Ray.

Shape legend: P arms (number 0 is the control), R outcomes (objectives, then metrics), C operating points.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from ray_train.attribution import Attribution
from ray_train.chi_square import chi_square_tail
from ray_train.estimators import FloatArray
from ray_train.experiment_design import Design, Scalarization
from ray_train.experiment_report import (
    Cell,
    Correlation,
    Effect,
    Experiment,
    FrontierReference,
    GuardrailVerdict,
    Prediction,
    SampleRatio,
    ShareTime,
)
from ray_train.experiment_strata import Strata
from ray_train.experiment_sums import ExperimentSums, Moments, Scope
from ray_train.intervals import ratios
from ray_train.logs import as_datetime
from ray_train.stratified import NAME
from triton_models.errors import ConfigurationError
from triton_models.files import or_null
from triton_models.frontier import Bounds, Frontier, Point
from triton_models.surface import FiniteFloat, Surface

FALSE_ALARM = 1e-3
"""Chance that arms which are as declared get a sample-ratio mismatch."""

SHARE_TOLERANCE = 1e-6
SAME_SCALARIZATION = 1e-6
FEWEST_POINTS = 3
"""Operating points below which a correlation says nothing."""


class Limit(BaseModel):
    """How much an outcome may change."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    minimum_lift: FiniteFloat | None = None
    maximum_lift: FiniteFloat | None = None

    @model_validator(mode="after")
    def _one_at_least(self) -> Limit:
        if self.minimum_lift is None and self.maximum_lift is None:
            raise ValueError("a limit needs a minimum or a maximum")
        return self


class Settings(BaseModel):
    """What the analysis is told; frozen."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    confidence: float = Field(default=0.95, gt=0, lt=1)
    shares: dict[int | None, dict[str, float]] = Field(default_factory=dict)
    """Declared share of the users by arm, by policy version; None is for every version not named."""
    guardrails: dict[str, Limit] = Field(default_factory=dict)
    """Limit by objective or metric."""

    @model_validator(mode="after")
    def _check_shares(self) -> Settings:
        for version, shares in self.shares.items():
            where = "" if version is None else f" of version {version}"
            if any(not 0 < share <= 1 for share in shares.values()):
                raise ValueError(f"the shares{where} must lie in (0, 1], got {shares}")
            if abs(math.fsum(shares.values()) - 1.0) > SHARE_TOLERANCE:
                raise ValueError(f"the shares{where} sum to {math.fsum(shares.values()):g}, not to 1")
        return self

    def declared(self, version: int) -> dict[str, float] | None:
        """The declared shares of a policy version, if there are any."""
        return self.shares.get(version, self.shares.get(None))

    def require_known(self, surface: Surface, design: Design) -> None:
        """Refuse limits of outcomes that the surface does not have, and shares that leave an arm out.

        Raises:
            ConfigurationError: naming the outcome or the arm.
        """
        for version in design.versions:
            declared = self.declared(version)
            for arm in design.arms_of(version) if declared is not None else ():
                if declared is not None and arm not in declared:
                    raise ConfigurationError(
                        f"--shares: policy version {version} has users in arm {arm!r}, which has no share; "
                        f"declared are {', '.join(declared)}"
                    )
        known = (*surface.objectives, *surface.metrics)
        for name in self.guardrails:
            if name not in known:
                raise ConfigurationError(f"--guardrail {name}: no such outcome; there are {', '.join(known)}")


def analyse(
    *,
    surface: Surface,
    design: Design,
    sums: ExperimentSums,
    rules: Attribution,
    settings: Settings,
    frontier: Frontier | None,
    decisions: str,
    events: str,
) -> Experiment:
    """Lifts, checks and predictions.

    Raises:
        ConfigurationError: declared shares or limits name what is not there.
        SurfaceMismatchError: the frontier was made for another surface.
    """
    settings.require_known(surface, design)
    if frontier is not None:
        surface.require_same(frontier.surface_object, this="the decisions", that="the frontier")
    cells = [
        cell
        for scope, moments in sums.scopes.items()
        for cell in _cells(surface, design, scope, moments)
        if cell.requests
    ]
    cells.sort(key=lambda cell: _order(design, cell))
    predictions = [] if frontier is None else _predictions(surface, design, frontier, cells)
    return Experiment(
        surface=surface.to_dict(),
        decisions=decisions,
        events=events,
        attribution={
            "as_of": rules.as_of.isoformat(),
            "after": None if rules.after is None else rules.after.isoformat(),
            "window_s": rules.window.total_seconds(),
            "late_limit_s": rules.late_limit.total_seconds(),
            "metrics": {name: rules.rule(name).value for name in surface.metrics},
        },
        first_decision=design.window[0].isoformat(),
        last_decision=design.window[1].isoformat(),
        latest_version=design.latest_version,
        confidence=settings.confidence,
        interval=NAME,
        control=design.control,
        arms=design.arms,
        cells=tuple(cells),
        share_times=tuple(_share_times(design)),
        mixed_versions=design.strata.mixed,
        sample_ratios=tuple(_sample_ratios(design, sums, settings)),
        guardrails=tuple(_guardrails(design, cells, settings)),
        frontier=None
        if frontier is None
        else FrontierReference(
            run_id=frontier.run.run_id,
            fingerprint=frontier.fingerprint,
            matches_decisions=design.frontiers == {frontier.fingerprint},
        ),
        predictions=tuple(predictions),
        correlations=tuple(_correlations(surface, predictions)),
        decision_counts={name: n for name, n in sorted(sums.decisions.items()) if n},
        event_counts={name: n for name, n in sorted(sums.events.items()) if n},
    )


def _order(design: Design, cell: Cell) -> tuple[Any, ...]:
    version = -1 if cell.policy_version is None else design.versions.index(cell.policy_version)
    cohort = -1 if cell.cohort is None else design.cohorts.index(cell.cohort)
    return version, cohort, design.arms.index(cell.arm)


def _cells(surface: Surface, design: Design, scope: Scope, moments: Moments) -> Iterable[Cell]:
    value_PR, lift_PR = ratios(moments.delta.total_PR2), moments.delta.lifts()
    bounds_PR2 = moments.delta.bounds()
    outcomes = (*surface.objectives, *surface.metrics)
    for p, arm in enumerate(design.arms):
        weight, off = float(moments.weight_P[p]), float(moments.off_P[p])
        yield Cell(
            arm=arm,
            policy_version=scope[0],
            cohort=scope[1],
            users=int(moments.users_P[p]),
            requests=int(moments.requests_P[p]),
            weighted_requests=weight,
            fallback_share=min(1.0, float(moments.fallback_P[p]) / weight) if weight else None,
            control_off_share=min(1.0, off / (weight + off)) if weight else None,
            effects={
                name: Effect(
                    value=or_null(value_PR[p, r]),
                    lift=or_null(lift_PR[p, r]) if p else None,
                    interval=_bounds(bounds_PR2[p, r]) if p else None,
                )
                for r, name in enumerate(outcomes)
            },
        )


def _bounds(pair: FloatArray) -> Bounds | None:
    low, high = (or_null(bound) for bound in pair)
    return None if low is None or high is None else (low, high)


def _share_times(design: Design) -> Iterable[ShareTime]:
    strata: Strata = design.strata
    for version, start_us, count_P in zip(strata.versions, strata.starts_us, strata.counts_SP, strict=True):
        # A bin may begin before the first of all decisions.
        start = max(as_datetime(np.datetime64(start_us, "us")), design.window[0])
        shares = {arm: n / sum(count_P) for arm, n in zip(design.arms, count_P, strict=True)}
        yield ShareTime(policy_version=version, start=start.isoformat(), requests=sum(count_P), shares=shares)


# ------------------------------------------------------------------------------------ sample ratio


def _sample_ratios(design: Design, sums: ExperimentSums, settings: Settings) -> Iterable[SampleRatio]:
    for version in design.versions:
        moments = sums.scopes.get((version if len(design.versions) > 1 else None, None))
        if moments is None:
            continue
        found = dict(zip(design.arms, moments.users_P.tolist(), strict=True))
        declared = settings.declared(version)
        arms = design.arms_of(version) if declared is None else declared
        users = {arm: found.get(arm, 0) for arm in arms}
        yield sample_ratio(version, users, declared)


def sample_ratio(version: int, users: Mapping[str, int], declared: Mapping[str, float] | None) -> SampleRatio:
    """``χ² = Σ_p (U_p - U s_p)² / (U s_p)`` over the arms' users ``U_p`` and shares ``s_p``."""
    shares = dict(declared) if declared is not None else {arm: 1.0 / len(users) for arm in users}
    total = sum(users.values())
    chi_square = (
        sum((users[arm] - total * s) ** 2 / (total * s) for arm, s in shares.items()) if total else 0.0
    )
    p_value = chi_square_tail(chi_square, len(users) - 1)
    verdict: Literal["as_declared", "mismatch", "not_declared"] = (
        "not_declared" if declared is None else "mismatch" if p_value < FALSE_ALARM else "as_declared"
    )
    return SampleRatio(
        policy_version=version,
        users=dict(users),
        shares=shares,
        declared=declared is not None,
        chi_square=chi_square,
        p_value=p_value,
        verdict=verdict,
    )


# -------------------------------------------------------------------------------------- guardrails


def _guardrails(design: Design, cells: list[Cell], settings: Settings) -> Iterable[GuardrailVerdict]:
    everybody = {c.arm: c for c in cells if c.policy_version is None and c.cohort is None}
    for name, limit in settings.guardrails.items():
        for arm in design.arms[1:]:
            if arm in everybody:
                effect = everybody[arm].effects[name]
                yield GuardrailVerdict(
                    outcome=name,
                    arm=arm,
                    minimum_lift=limit.minimum_lift,
                    maximum_lift=limit.maximum_lift,
                    lift=effect.lift,
                    interval=effect.interval,
                    verdict=guardrail_verdict(limit, effect.interval),
                )


def guardrail_verdict(limit: Limit, interval: Bounds | None) -> Literal["holds", "breached", "undecided"]:
    """``holds`` if the whole interval is within the limit, ``breached`` if all of it is beyond."""
    if interval is None:
        return "undecided"
    low, high = interval
    least = -math.inf if limit.minimum_lift is None else limit.minimum_lift
    most = math.inf if limit.maximum_lift is None else limit.maximum_lift
    if high < least or low > most:
        return "breached"
    return "holds" if least <= low and high <= most else "undecided"


# ------------------------------------------------------------------------------------- predictions


def _predictions(surface: Surface, design: Design, frontier: Frontier, cells: list[Cell]) -> list[Prediction]:
    """Every cell whose arm used one λ there that is a point of the frontier.

    An arm that kept its λ over all versions is one operating point, one that changed it is one per version.
    """
    predictions = []
    for cell in cells:
        if cell.arm == design.control:
            continue
        whole = design.scalarization(cell.arm, None, cell.cohort)
        if (whole is None) == (cell.policy_version is None):
            continue
        used = design.scalarization(cell.arm, cell.policy_version, cell.cohort)
        point = None if used is None else _point(surface, frontier, used, cell.cohort)
        if used is not None and point is not None:
            predictions.append(_prediction(surface, frontier, cell, used, point))
    return predictions


def _point(surface: Surface, frontier: Frontier, used: Scalarization, cohort: str | None) -> Point | None:
    wanted = surface.scalarization(used)
    for point in frontier.points_of(cohort):
        if np.abs(surface.scalarization(point.scalarization) - wanted).max() <= SAME_SCALARIZATION:
            return point
    return None


def _prediction(
    surface: Surface, frontier: Frontier, cell: Cell, used: Scalarization, point: Point
) -> Prediction:
    metrics = {name: point.metrics[name] for name in surface.metrics}
    return Prediction(
        arm=cell.arm,
        policy_version=cell.policy_version,
        cohort=cell.cohort,
        scalarization=used,
        point=frontier.points.index(point),
        predicted={**point.lifts, **{name: metric.lift for name, metric in metrics.items()}},
        predicted_intervals={
            **point.intervals,
            **{name: metric.interval for name, metric in metrics.items()},
        },
        measured={name: effect.lift for name, effect in cell.effects.items()},
        measured_intervals={name: effect.interval for name, effect in cell.effects.items()},
    )


def _correlations(surface: Surface, predictions: list[Prediction]) -> Iterable[Correlation]:
    for among in ("everybody", "cohorts"):
        points = [p for p in predictions if (p.cohort is None) == (among == "everybody")]
        for name in (*surface.objectives, *surface.metrics) if points else ():
            pairs = [(p.predicted[name], p.measured[name]) for p in points]
            known = np.array([pair for pair in pairs if None not in pair], dtype=np.float64).reshape(-1, 2)
            pearson, interval = correlation(known)
            yield Correlation(
                outcome=name,
                among=among,
                points=len(known),
                pearson=pearson,
                interval=interval,
            )


def correlation(pair_C2: FloatArray, confidence: float = 0.95) -> tuple[float | None, Bounds | None]:
    """Pearson's correlation of at least three pairs, and its interval from four on.

    ``atanh r`` is about normal with standard deviation ``1 / √(C - 3)`` (Fisher 1921).
    """
    points = len(pair_C2)
    if points < FEWEST_POINTS or not (pair_C2.std(axis=0) > 0).all():
        return None, None
    r = float(np.clip(np.corrcoef(pair_C2.T)[0, 1], -1.0, 1.0))
    if points == FEWEST_POINTS or abs(r) >= 1.0 - 1e-12:
        return r, None
    half = NormalDist().inv_cdf(0.5 + confidence / 2.0) / math.sqrt(points - 3)
    return r, (math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half))
