"""Repeat a log and see how wrong every estimator is: bias, RMSE, coverage, against the exact truth.

A repetition draws a log from the pool (:mod:`benchmarks.estimator_error.pool`) and values all policies on
it with every estimator, lifts paired against production, as ``sweep`` does. Errors are against the lifts over
the production weights themselves, so that how production is valued counts as error.

Shape legend: K repetitions, P policies, M objectives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import numpy as np
import numpy.typing as npt

from benchmarks.estimator_error.pool import Pool
from ray_train.estimators import ChosenActions, FloatArray, Policy
from ray_train.estimators_by_name import Task, fit_model, make_estimator
from ray_train.evaluation import evaluate
from ray_train.intervals import ClusterBootstrap, DeltaMethod
from ray_train.production import Valuation, production_policy
from triton_models.surface import Surface


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What every repetition does; travels to the workers once."""

    pool: Pool
    surface: Surface
    estimators: tuple[str, ...]
    bootstrapped: tuple[str, ...]
    """Estimators whose bootstrap intervals are looked at as well."""
    rows: int
    seed: int
    resamples: int = 300
    """Of the bootstrap, in every repetition."""
    production: Valuation = "smooth"


@dataclass(frozen=True, kw_only=True)
class Found:
    """All repetitions of one estimator."""

    name: str
    error_KPM: FloatArray
    covered_KPM: npt.NDArray[np.bool_]
    """By the normal interval of each lift."""
    together_K: npt.NDArray[np.bool_]
    """All lifts inside their simultaneous bands."""
    bootstrap_KPM: npt.NDArray[np.bool_] | None

    @property
    def bias_PM(self) -> FloatArray:
        """Mean error."""
        return np.asarray(self.error_KPM.mean(axis=0))

    @property
    def rmse_PM(self) -> FloatArray:
        """Root of the mean squared error."""
        return np.asarray(np.sqrt((self.error_KPM**2).mean(axis=0)))

    @property
    def rmse(self) -> float:
        """Over all policies and objectives."""
        return float(np.sqrt((self.error_KPM**2).mean()))

    @property
    def coverage_PM(self) -> FloatArray:
        """Share of the repetitions whose normal interval held the truth."""
        return np.asarray(self.covered_KPM.mean(axis=0))


Result = dict[str, tuple[FloatArray, npt.NDArray[np.bool_], bool, npt.NDArray[np.bool_] | None]]


def one_repetition(plan: Plan, number: int) -> Result:
    """By estimator: errors, covered by the normal interval, all by the bands, covered by the bootstrap."""
    rng = np.random.default_rng([plan.seed, number])
    size = plan.surface.num_actions
    rows, chosen_NP = plan.pool.logged(rng, plan.rows, np.full(size, 1.0 / size))
    policies: list[Policy] = [production_policy(plan.surface, plan.production)]
    policies += [ChosenActions(chosen) for chosen in np.ascontiguousarray(chosen_NP.T)]
    model = fit_model(plan.surface, rows)
    truth_PM, out = plan.pool.truth_PM, {}
    for name in plan.estimators:
        task = Task(surface=plan.surface, rows=rows, policies=policies, model=model)
        estimator = make_estimator(name, task)
        result = evaluate(estimator, rows, policies, DeltaMethod())
        resampled = None
        if name in plan.bootstrapped:
            method = ClusterBootstrap(resamples=plan.resamples, seed=number)
            resampled = _inside(evaluate(estimator, rows, policies, method).bounds_PR2[1:], truth_PM)
        out[name] = (
            result.lift_PR[1:] - truth_PM,
            _inside(result.bounds_PR2[1:], truth_PM),
            bool(_inside(result.bands_PR2[1:], truth_PM).all()),
            resampled,
        )
    return out


def _inside(bounds_PM2: FloatArray, truth_PM: FloatArray) -> npt.NDArray[np.bool_]:
    return np.asarray((bounds_PM2[..., 0] <= truth_PM) & (truth_PM <= bounds_PM2[..., 1]))


_plan: Plan | None = None


def _start(plan: Plan) -> None:
    global _plan  # one per worker process: the pool is too large to travel with every repetition
    _plan = plan


def _work(number: int) -> Result:
    if _plan is None:
        raise RuntimeError("the worker was not given a plan")
    return one_repetition(_plan, number)


def repeat(
    plan: Plan, repetitions: int, *, processes: int, progress: Callable[[int], None] | None = None
) -> list[Found]:
    """All repetitions, in several processes; the same figures whatever their number."""
    results: list[Result] = []
    for result in _results(plan, repetitions, processes):
        results.append(result)
        if progress is not None:
            progress(len(results))
    return [_gather(name, [result[name] for result in results]) for name in plan.estimators]


def _results(plan: Plan, repetitions: int, processes: int) -> Iterator[Result]:
    if processes <= 1:
        yield from (one_repetition(plan, number) for number in range(repetitions))
        return
    with ProcessPoolExecutor(
        processes, mp_context=get_context("spawn"), initializer=_start, initargs=(plan,)
    ) as pool:
        yield from pool.map(_work, range(repetitions))


def _gather(
    name: str,
    parts: Sequence[tuple[FloatArray, npt.NDArray[np.bool_], bool, npt.NDArray[np.bool_] | None]],
) -> Found:
    resampled = [part[3] for part in parts if part[3] is not None]
    return Found(
        name=name,
        error_KPM=np.stack([part[0] for part in parts]),
        covered_KPM=np.stack([part[1] for part in parts]),
        together_K=np.array([part[2] for part in parts]),
        bootstrap_KPM=np.stack(resampled) if resampled else None,
    )
