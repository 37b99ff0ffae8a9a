"""What a policy would have earned, read from logs of another policy: one estimator, one class.

Every estimator here is a ratio of sums over the logged rows,

    V̂(π) = Σ_i numerator_i / Σ_i denominator_i ,

so each class only says what one row adds to both. Sums per user, totals, lifts and intervals are then
the same code for all (:mod:`ray_train.evaluation`, :mod:`ray_train.intervals`). Estimators that need a
model of the reward fit in as well: their rows all count and their denominators are 1.

Shape legend: N logged rows, H rows that contribute, R outcomes (objectives first, then metrics),
A actions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.intp]
RowIndex = slice | npt.NDArray[np.bool_] | IntArray


@dataclass(frozen=True, kw_only=True)
class LoggedRows:
    """Logged rows as an estimator sees them; all arrays have N rows."""

    user_N: npt.NDArray[np.int32]
    """User number, the cluster of the intervals."""
    action_N: npt.NDArray[np.int16]
    """Number of the logged action."""
    propensity_N: FloatArray
    """Probability with which the logging policy chose it, in (0, 1]."""
    outcome_NR: npt.NDArray[np.float32]
    """Clipped rewards, then metrics; NaN where a metric is null."""

    def __len__(self) -> int:
        return len(self.action_N)

    def take(self, index: RowIndex) -> Self:
        """Some of the rows."""
        return replace(self, **{field.name: getattr(self, field.name)[index] for field in fields(self)})


class Policy(ABC):
    """A policy as the logs see it: how likely it takes the logged action of each row."""

    deterministic: ClassVar[bool]

    @abstractmethod
    def probability(self, rows: LoggedRows) -> FloatArray:
        """``π(a_i | s_i)`` of the logged actions, [N]."""

    @abstractmethod
    def take(self, index: RowIndex) -> Policy:
        """The policy restricted to some of the rows."""


@dataclass(frozen=True)
class ChosenActions(Policy):
    """A deterministic policy, given by the action that it chooses on each row."""

    chosen_N: npt.NDArray[np.int16]

    deterministic: ClassVar[bool] = True

    def probability(self, rows: LoggedRows) -> FloatArray:
        """1 where the policy's action equals the logged one, else 0."""
        return np.asarray(self.chosen_N == rows.action_N, dtype=np.float64)

    def take(self, index: RowIndex) -> ChosenActions:
        """The choices on some of the rows."""
        return ChosenActions(self.chosen_N[index])


@dataclass(frozen=True)
class ActionMixture(Policy):
    """A randomised policy that ignores the request: one distribution over the actions.

    Static weights that are no grid point are valued as the mixture of the surrounding grid points with
    the same mean (:func:`ray_train.production.static_mixture`).
    """

    probability_A: FloatArray

    deterministic: ClassVar[bool] = False

    def probability(self, rows: LoggedRows) -> FloatArray:
        """The probability of each row's logged action."""
        return np.asarray(self.probability_A[rows.action_N])

    def take(self, index: RowIndex) -> ActionMixture:
        """Itself: it does not depend on the row."""
        return self


@dataclass(frozen=True)
class Terms:
    """What rows add to an estimator's two sums."""

    row_H: npt.NDArray[np.intp]
    """Positions of the rows that add something."""
    weight_H: FloatArray
    """Their importance weights; hits and effective sample size are made of these."""
    numerator_HR: FloatArray
    denominator_HR: FloatArray


class Estimator(ABC):
    """A way to value a policy from logs."""

    name: ClassVar[str]
    formula: ClassVar[str]
    """One line for reports."""

    @abstractmethod
    def terms(self, rows: LoggedRows, policy: Policy) -> Terms:
        """What each contributing row adds to the numerator and the denominator of every outcome."""


class WeightedEstimator(Estimator):
    """``V̂(π) = Σ_i w_i r_i / Σ_i w_i``: subclasses say what the weights are.

    A row whose outcome is null (a metric that was not measured) adds to neither sum of that outcome.
    """

    def terms(self, rows: LoggedRows, policy: Policy) -> Terms:
        """Only rows with a positive weight; under a uniform grid of A actions that is N / A of them."""
        weight_N = self.weights(rows, policy)
        row_H = np.flatnonzero(weight_N)
        weight_H1 = weight_N[row_H, None]
        outcome_HR = rows.outcome_NR[row_H].astype(np.float64)
        known_HR = ~np.isnan(outcome_HR)
        return Terms(
            row_H=row_H,
            weight_H=weight_H1[:, 0],
            numerator_HR=weight_H1 * np.where(known_HR, outcome_HR, 0.0),
            denominator_HR=weight_H1 * known_HR,
        )

    @abstractmethod
    def weights(self, rows: LoggedRows, policy: Policy) -> FloatArray:
        """Importance weights ``w_i ≥ 0``, [N]."""


class SelfNormalizedIPS(WeightedEstimator):
    """``V̂ = Σ_i w_i r_i / Σ_i w_i`` with ``w_i = π(a_i|s_i) / p_i``.

    Self-normalised inverse propensity scoring (Swaminathan & Joachims, *The Self-Normalized Estimator
    for Counterfactual Learning*, NeurIPS 2015). Right for any logging policy that gives every action
    of π a positive probability; consistent, with a bias of order 1/N. Under uniform logging and a
    deterministic policy it equals Reward@HIT.
    """

    name: ClassVar[str] = "snips"
    formula: ClassVar[str] = "SNIPS: Σ w r / Σ w with w = π(a|s) / p(a|s)"

    def weights(self, rows: LoggedRows, policy: Policy) -> FloatArray:
        """``π(a_i|s_i) / p_i``."""
        return policy.probability(rows) / rows.propensity_N


class RewardAtHit(SelfNormalizedIPS):
    """``V̂ = mean of r_i over the rows with π(s_i) = a_i`` (arXiv 2605.16344, Eq. 9).

    The propensities do not enter, so it is right for uniform logging only; elsewhere it favours what
    the logging policy liked. Eq. 9 is not defined for a randomised policy: those (production as a
    mixture of grid points) are valued by SNIPS, which is the same number under uniform logging.
    """

    name: ClassVar[str] = "reward_at_hit"
    formula: ClassVar[str] = "Reward@HIT: mean reward of the rows whose logged action is the policy's (Eq. 9)"

    def weights(self, rows: LoggedRows, policy: Policy) -> FloatArray:
        """The hit indicator of a deterministic policy."""
        return policy.probability(rows) if policy.deterministic else super().weights(rows, policy)


ESTIMATORS: dict[str, type[Estimator]] = {cls.name: cls for cls in (SelfNormalizedIPS, RewardAtHit)}
"""Estimators by the name the command line knows them by."""


def logging_is_uniform(propensity_N: FloatArray, num_actions: int) -> bool:
    """Whether every row was logged uniformly over the grid (to float32 precision)."""
    return bool(np.all(np.abs(propensity_N * num_actions - 1.0) < 1e-4))
