"""Scored rows → frontier: what every operating point would have done, how sure that is, which to test.

Nothing here touches Ray or torch; :mod:`ray_train.scoring` makes the rows. Pure functions of the rows and
the settings, deterministic for a seed.

Shape legend: N rows, P scalarizations, M objectives, R outcomes (objectives, then metrics), A actions.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ray_train.estimators import (
    ActionMixture,
    ChosenActions,
    ChosenMixtures,
    Estimator,
    FloatArray,
    LoggedRows,
    RewardAtHit,
    RowIndex,
    SelfNormalizedIPS,
    logging_is_uniform,
)
from ray_train.estimators_by_name import MODELLED, Task, fit_model, make_estimator
from ray_train.estimators_model import DirectMethod, ModelEstimator
from ray_train.evaluation import Evaluation, evaluate
from ray_train.finer import finer_grid
from ray_train.pareto import choose_candidates, hypervolume, non_dominated
from ray_train.production import production_note, production_policy, static_policy
from ray_train.sweep_settings import SweepSettings
from triton_models.errors import LogError
from triton_models.frontier import (
    Baseline,
    Bounds,
    Candidate,
    Estimate,
    EstimatorReference,
    Frontier,
    MetricEstimate,
    Point,
    Production,
    RunReference,
    Window,
)
from triton_models.surface import Surface

logger = logging.getLogger(__name__)

THIN_PROPENSITY = 0.05
"""A row whose propensity is below this share of uniform's weighs more than twenty others."""
MINIMUM_HITS = 100
"""Below so many hits a point's estimate is mostly noise, and its interval too narrow to be believed."""


@dataclass(frozen=True, kw_only=True)
class ScoredRows:
    """Logged rows, sorted by user, with the action of every scalarization's policy."""

    rows: LoggedRows
    chosen_NP: npt.NDArray[np.int16]
    """``a*(s; λ_p)``."""
    cohort_N: npt.NDArray[np.int16]
    """Position in ``cohorts``; -1 for none."""
    cohorts: tuple[str, ...]
    rejected: int = 0
    """Bad rows of the window that were left out."""
    finer_NP: npt.NDArray[np.int16] | None = None
    """The same on a finer grid (:mod:`ray_train.finer`)."""

    def take(self, index: RowIndex) -> ScoredRows:
        """Some of the rows."""
        return ScoredRows(
            rows=self.rows.take(index),
            chosen_NP=self.chosen_NP[index],
            cohort_N=self.cohort_N[index],
            cohorts=self.cohorts,
            rejected=self.rejected,
            finer_NP=None if self.finer_NP is None else self.finer_NP[index],
        )


def build_frontier(
    *, surface: Surface, run: RunReference, window: Window, scored: ScoredRows, settings: SweepSettings
) -> Frontier:
    """The frontier of scored rows.

    Raises:
        LogError: there are no rows.
        ConfigurationError: the settings do not fit the surface.
    """
    if not len(scored.rows):
        raise LogError(f"no usable rows between {window.start} and {window.end} in {window.logs}")
    sweep = _Sweep(surface, settings, scored)
    sweep.warn()
    points, baselines = sweep.cohort_points(None)
    candidates = sweep.candidates(points)
    points += sweep.finer_points(None, points)
    if settings.by_cohort:
        if not scored.cohorts:
            logger.warning("no row has a cohort: there is nothing to show by cohort")
        for cohort in scored.cohorts:
            more_points, more_baselines = sweep.cohort_points(cohort)
            points += more_points + sweep.finer_points(cohort, more_points)
            baselines += more_baselines
    return Frontier(
        surface=surface.to_dict(),
        run=run,
        window=window,
        estimator=EstimatorReference(
            name=sweep.estimator.name,
            formula=sweep.formula,
            interval=settings.interval_method().name,
            confidence=settings.confidence,
            resamples=settings.resamples,
            seed=settings.seed,
            critical=_null(sweep.critical),
            looks=sweep.looks,
            details=sweep.details,
        ),
        production=Production(
            valuation=settings.production,
            note=production_note(surface, settings.production),
            weights=_named_weights(surface, surface.production),
            estimates=tuple(baselines),
        ),
        points=tuple(points),
        candidates=candidates,
        warnings=tuple(sweep.warnings),
    )


class _Sweep:
    """What the steps of one sweep share."""

    def __init__(self, surface: Surface, settings: SweepSettings, scored: ScoredRows) -> None:
        self.surface = surface
        self.settings = settings
        self.scored = scored
        self.scalarization_PM = settings.scalarizations(surface)
        self.production = production_policy(surface, settings.production)
        self.warnings: list[str] = []
        self.critical, self.looks = math.nan, 0
        self.finer = finer_grid(surface, settings.finer) if settings.finer > 1 else None
        self.estimator: Estimator = self._make_estimator()
        self.uniform = logging_is_uniform(scored.rows.propensity_N, surface.num_actions)

    def _make_estimator(self) -> Estimator:
        """Ready for everybody's rows and points; cohorts are valued with the same one."""
        rows, name = self.scored.rows, self.settings.estimator
        model = fit_model(self.surface, rows, self.settings.reward_model) if name in MODELLED else None
        policies = [self.production, *_policies(self.scored)]
        task = Task(surface=self.surface, rows=rows, policies=policies, model=model)
        return make_estimator(name, task)

    @property
    def formula(self) -> str:
        """The estimator's formula, and what it is known as on these logs."""
        if self.uniform and type(self.estimator) is SelfNormalizedIPS:
            return f"{self.estimator.formula}; logging was uniform, so this is the paper's Reward@HIT (Eq. 9)"
        return self.estimator.formula

    def warn(self) -> None:
        """Say what makes the numbers to come less trustworthy."""
        if isinstance(self.estimator, RewardAtHit) and not self.uniform:
            self._warn(
                f"the logging policy was not uniform over the grid: {self.estimator.name} ignores the "
                f"propensities and is biased here; use --estimator {SelfNormalizedIPS.name}"
            )
        if isinstance(self.estimator, DirectMethod):
            self._warn("dm believes its model of the reward: its intervals do not know the model's bias")
        if self.finer is not None:
            self._warn(
                f"extrapolated points choose among {len(self.finer.weights_TW)} weight vectors, "
                f"{self.surface.num_actions} of which were explored: between them the network's and the "
                "reward's answers are interpolated (natural cubic splines), and no logged row checks that"
            )
        smallest = float(self.scored.rows.propensity_N.min())
        if smallest < THIN_PROPENSITY / self.surface.num_actions:
            self._warn(
                f"the smallest logged propensity is {smallest:.2g}, against "
                f"{1 / self.surface.num_actions:.2g} under uniform logging: single rows weigh much (overlap)"
            )

    def _warn(self, text: str) -> None:
        """Into the log, and into the frontier."""
        logger.warning("%s", text)
        self.warnings.append(text)

    @property
    def details(self) -> str:
        """The model of the reward and the knobs."""
        if not isinstance(self.estimator, ModelEstimator):
            return ""
        told = {
            "ridge": "model of the reward: ridge, cross-fitted by user",
            "network": "model of the reward: the run's network, which did not see these rows",
        }[self.settings.reward_model]
        return "; ".join(filter(None, [told, self.estimator.knobs]))

    def cohort_points(self, cohort: str | None) -> tuple[list[Point], list[Baseline]]:
        """All points and production's estimate for one cohort; nothing where it has no rows."""
        scored = self._rows_of(cohort)
        if not len(scored.rows):
            return [], []
        policies = _policies(scored)
        result = evaluate(
            self.estimator, scored.rows, [self.production, *policies], self.settings.interval_method()
        )
        self._warn_if_thin(cohort, result)
        if cohort is None:
            self.critical = result.critical
            self.looks = int(np.isfinite(result.bands_PR2[1:, :, 0]).sum())
        lift_PM = result.lift_PR[1:, : len(self.surface.objectives)]
        front_P = non_dominated(lift_PM)
        points = [
            Point(
                scalarization=tuple(self.scalarization_PM[p].tolist()),
                cohort=cohort,
                dominated=not front_P[p],
                extrapolated=False,
                **dict(self._estimate(result, 1 + p, self._mean_weights(policy.chosen_N))),
            )
            for p, policy in enumerate(policies)
        ]
        return points, [self._baseline(cohort, scored, result, hypervolume(lift_PM[front_P]))]

    def finer_points(self, cohort: str | None, explored: list[Point]) -> list[Point]:
        """Points with choices between the explored weights, where the network makes any.

        They are valued by themselves: the bands of the explored points do not widen for them.
        """
        scored, finer = self._rows_of(cohort), self.finer
        if finer is None or scored.finer_NP is None or not len(scored.rows):
            return []
        chosen_PN = np.ascontiguousarray(scored.finer_NP.T)
        between_P = np.array([(finer.action_T[chosen_N] < 0).any() for chosen_N in chosen_PN])
        policies = [ChosenMixtures(chosen_N, finer.mixture_TA) for chosen_N in chosen_PN[between_P]]
        result = evaluate(
            self.estimator, scored.rows, [self.production, *policies], self.settings.interval_method()
        )
        objectives = self.surface.objectives
        lift_PM = result.lift_PR[1:, : len(objectives)]
        known_PM = np.array([[_nan(point.lifts[name]) for name in objectives] for point in explored])
        front_P = non_dominated(np.concatenate([lift_PM, known_PM]))
        points = []
        for i, p in enumerate(np.flatnonzero(between_P)):
            count_T = np.bincount(chosen_PN[p], minlength=len(finer.weights_TW))
            mean_W = np.asarray(count_T @ finer.weights_TW / len(scored.rows))
            # A spline's mixture holds every action; what was logged is hit by explored choices only.
            hits = int((finer.action_T[chosen_PN[p]] == scored.rows.action_N).sum())
            points.append(
                Point(
                    scalarization=tuple(self.scalarization_PM[p].tolist()),
                    cohort=cohort,
                    dominated=not front_P[i],
                    extrapolated=True,
                    **{**dict(self._estimate(result, 1 + i, mean_W)), "hits": hits},
                )
            )
        return points

    def candidates(self, points: list[Point]) -> dict[str, Candidate]:
        """Candidates among everybody's points, each with its matched static weights (Section 6.4.5)."""
        objectives = self.surface.objectives
        lift_PM = np.array([[_nan(point.lifts[name]) for name in objectives] for point in points])
        lower_PM = np.array([[_lower(point.bands()[name]) for name in objectives] for point in points])
        choices = choose_candidates(lift_PM, non_dominated(lift_PM), objectives, lower_PM)
        matched = self._matched_static(sorted({choice.point for choice in choices}), points)
        return {
            choice.label: Candidate(
                point=choice.point,
                reason=choice.reason,
                lower_bounds_not_negative=points[choice.point].lower_bounds_not_negative(),
                matched_static=matched[choice.point],
            )
            for choice in choices
        }

    def _matched_static(self, chosen: list[int], points: list[Point]) -> dict[int, Estimate]:
        heads = self.surface.controlled_heads
        weights = [np.array([points[p].mean_weights[head] for head in heads]) for p in chosen]
        policies: list[ActionMixture] = [static_policy(self.surface, vector) for vector in weights]
        result = evaluate(
            self.estimator, self.scored.rows, [self.production, *policies], self.settings.interval_method()
        )
        return {p: self._estimate(result, 1 + i, weights[i]) for i, p in enumerate(chosen)}

    def _rows_of(self, cohort: str | None) -> ScoredRows:
        if cohort is None:
            return self.scored
        return self.scored.take(self.scored.cohort_N == self.scored.cohorts.index(cohort))

    def _mean_weights(self, chosen_N: npt.NDArray[np.int16]) -> FloatArray:
        count_A = np.bincount(chosen_N, minlength=self.surface.num_actions)
        return np.asarray(count_A @ self.surface.actions / len(chosen_N))

    def _estimate(self, result: Evaluation, p: int, mean_weights: FloatArray) -> Estimate:
        objectives, metrics = self.surface.objectives, self.surface.metrics
        m = len(objectives)
        bounds = [_bounds(pair) for pair in result.bounds_PR2[p]]
        bands = [_bounds(pair) for pair in result.bands_PR2[p]]
        return Estimate(
            values=_by_name(objectives, result.value_PR[p, :m]),
            lifts=_by_name(objectives, result.lift_PR[p, :m]),
            intervals=dict(zip(objectives, bounds[:m], strict=True)),
            simultaneous=dict(zip(objectives, bands[:m], strict=True)),
            metrics={
                name: MetricEstimate(
                    value=_null(result.value_PR[p, r]),
                    lift=_null(result.lift_PR[p, r]),
                    interval=bounds[r],
                    simultaneous=bands[r],
                )
                for r, name in enumerate(metrics, start=m)
            },
            hits=int(result.hits_P[p]),
            effective_sample_size=float(result.effective_P[p]),
            mean_weights=_named_weights(self.surface, mean_weights),
        )

    def _baseline(
        self, cohort: str | None, scored: ScoredRows, result: Evaluation, volume: float | None
    ) -> Baseline:
        m = len(self.surface.objectives)
        return Baseline(
            cohort=cohort,
            rows=len(scored.rows),
            values=_by_name(self.surface.objectives, result.value_PR[0, :m]),
            metrics=_by_name(self.surface.metrics, result.value_PR[0, m:]),
            hits=int(result.hits_P[0]),
            effective_sample_size=float(result.effective_P[0]),
            hypervolume=volume,
        )

    def _warn_if_thin(self, cohort: str | None, result: Evaluation) -> None:
        thin = int((result.hits_P < MINIMUM_HITS).sum())
        if thin:
            self._warn(
                f"{cohort or 'all rows'}: {thin} of {len(result.hits_P)} policies have fewer than "
                f"{MINIMUM_HITS} hits (fewest {int(result.hits_P.min())}): their estimates are mostly noise"
            )
        few = int((result.effective_P < MINIMUM_HITS).sum())
        if few and not thin:
            self._warn(
                f"{cohort or 'all rows'}: {few} policies have an effective sample below {MINIMUM_HITS} rows "
                f"(least {result.effective_P.min():.0f}): a few rows with large weights decide"
            )


def _policies(scored: ScoredRows) -> list[ChosenActions]:
    return [ChosenActions(chosen_N) for chosen_N in np.ascontiguousarray(scored.chosen_NP.T)]


def _named_weights(surface: Surface, weights: FloatArray) -> dict[str, float]:
    return dict(zip(surface.controlled_heads, weights.tolist(), strict=True))


def _by_name(names: tuple[str, ...], values: npt.NDArray[np.float64]) -> dict[str, float | None]:
    return {name: _null(value) for name, value in zip(names, values, strict=True)}


def _null(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _nan(value: float | None) -> float:
    return math.nan if value is None else value


def _lower(bounds: Bounds | None) -> float:
    return math.nan if bounds is None else bounds[0]


def _bounds(pair: npt.NDArray[np.float64]) -> tuple[float, float] | None:
    return (float(pair[0]), float(pair[1])) if np.isfinite(pair).all() else None
