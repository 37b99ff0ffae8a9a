"""Estimators by the name the command line knows them by, made ready for the rows that are to be valued."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ray_train.estimators import (
    Estimator,
    InversePropensity,
    LoggedRows,
    Policy,
    RewardAtHit,
    SelfNormalizedIPS,
)
from ray_train.estimators_basis import polynomial_basis, utility_basis
from ray_train.estimators_features import feature_shape
from ray_train.estimators_mips import MarginalizedIPS, grid_cells, inside_cells
from ray_train.estimators_model import DirectMethod, DoublyRobust, ModelEstimator, ShrunkDR, SwitchDR
from ray_train.estimators_reward import ActionValueModel, NetworkModel, RewardModel
from ray_train.estimators_smooth import KernelDR, ProjectionDR, coefficient_noise, exact_share
from ray_train.estimators_tuning import least_error, some_policies
from triton_models.errors import ConfigurationError
from triton_models.surface import Surface

logger = logging.getLogger(__name__)

BANDWIDTH_STEPS = 1.5
"""Kernel bandwidth in grid steps: the next grid point counts a little more than half; chosen by measurement
(benchmarks/RESULTS.md)."""
SWITCH_SHARES = (0.5, 0.9, 0.99, 1.0)
"""Thresholds of Switch-DR tried: quantiles of the largest weight a row could have, 1 / p."""
SHRINKAGES = (1.0, 10.0, 100.0, 1_000.0, 10_000.0, np.inf)
"""λ of DRos tried."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What an estimator is made ready for."""

    surface: Surface
    rows: LoggedRows
    policies: Sequence[Policy]
    model: ActionValueModel | None = None
    """None for estimators without a model of the reward."""

    @property
    def objectives(self) -> int:
        """Outcomes that knobs are set for."""
        return len(self.surface.objectives)


def _switch(model: ActionValueModel, task: Task) -> SwitchDR:
    thresholds = np.unique(np.quantile(1.0 / task.rows.propensity_N, SWITCH_SHARES))
    candidates = [SwitchDR(model, float(threshold)) for threshold in (0.0, *thresholds)]
    return candidates[_best(candidates, task)]


def _shrunk(model: ActionValueModel, task: Task) -> ShrunkDR:
    candidates = [ShrunkDR(model, shrinkage) for shrinkage in SHRINKAGES]
    return candidates[_best(candidates, task)]


def _best(candidates: Sequence[ModelEstimator], task: Task) -> int:
    return least_error(candidates, task.rows, task.policies, task.objectives)


def _projection(model: ActionValueModel, task: Task) -> ProjectionDR:
    noise = coefficient_noise(model, task.rows, task.objectives)
    plain = ProjectionDR(model, utility_basis(task.surface), noise=noise)
    share = exact_share(plain, task.rows, some_policies(task.policies), task.objectives)
    chosen = ProjectionDR(model, plain.basis, share, noise=noise)
    logger.info("projection DR: %s", chosen.knobs)
    return chosen


def _mips(task: Task) -> MarginalizedIPS:
    cells = grid_cells(task.surface)
    return MarginalizedIPS(cells, inside_cells(cells, task.rows, task.surface.num_actions))


PLAIN: dict[str, type[Estimator]] = {
    cls.name: cls for cls in (RewardAtHit, InversePropensity, SelfNormalizedIPS)
}
"""Estimators that need the logged rows only."""

EMBEDDED: dict[str, Callable[[Task], Estimator]] = {MarginalizedIPS.name: _mips}
"""Estimators that know the grid, without a model of the reward."""

MODELLED: dict[str, Callable[[ActionValueModel, Task], ModelEstimator]] = {
    DirectMethod.name: lambda model, task: DirectMethod(model),
    DoublyRobust.name: lambda model, task: DoublyRobust(model),
    SwitchDR.name: _switch,
    ShrunkDR.name: _shrunk,
    KernelDR.name: lambda model, task: KernelDR(model, task.surface, BANDWIDTH_STEPS),
    ProjectionDR.name: _projection,
}
"""Estimators with a model of the reward, and how their knobs are set."""

ESTIMATORS = (*PLAIN, *EMBEDDED, *MODELLED)

UNBIASED = (RewardAtHit.name, InversePropensity.name, SelfNormalizedIPS.name, DoublyRobust.name)
"""Said to be unbiased, or to have a bias of order 1/N only; Reward@HIT under uniform logging."""


def fit_model(surface: Surface, rows: LoggedRows, kind: str = "ridge") -> ActionValueModel:
    """The model of the reward: ``ridge``, cross-fitted on these rows, or the run's ``network`` as it is.

    Raises:
        ConfigurationError: no such kind, or rows without features for the network.
    """
    basis = polynomial_basis(surface)
    if kind == "ridge":
        return RewardModel.fit(rows, basis, feature_shape(surface, basis))
    if kind != "network":
        raise ConfigurationError(f"the reward model must be ridge or network, got {kind!r}")
    if rows.feature_NF is None:
        raise ConfigurationError("the rows carry no values of the run's network; use the reward model ridge")
    return NetworkModel(basis, len(surface.objectives))


def make_estimator(name: str, task: Task) -> Estimator:
    """An estimator ready for use.

    Raises:
        ConfigurationError: no such estimator.
    """
    if name in PLAIN:
        return PLAIN[name]()
    if name in EMBEDDED:
        return EMBEDDED[name](task)
    if name not in MODELLED:
        raise ConfigurationError(f"the estimator must be one of {', '.join(ESTIMATORS)}, got {name!r}")
    return MODELLED[name](task.model or fit_model(task.surface, task.rows), task)
