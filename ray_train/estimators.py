"""What a policy would have earned, read from logs of another policy: one estimator, one class.

Every estimator here is a ratio of sums over the logged rows,

    V̂(π) = Σ_i numerator_i / Σ_i denominator_i ,

so each class only says what one row adds to both. Sums per user, totals, lifts and intervals are then
the same code for all (:mod:`ray_train.evaluation`, :mod:`ray_train.intervals`). Here are those that need
the logged rows only; :mod:`ray_train.estimators_model` has those with a model of the reward, and
:mod:`ray_train.estimators_smooth` those that let neighbouring grid points count. By name:
:mod:`ray_train.estimators_by_name`.

Shape legend: N logged rows, H rows that contribute, R outcomes (objectives first, then metrics),
A actions, T mixtures of actions, F features.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self

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
    feature_NF: npt.NDArray[np.floating[Any]] | None = None
    """What a model of the reward may know of the request (:mod:`ray_train.estimators_features`)."""

    def __len__(self) -> int:
        return len(self.action_N)

    def take(self, index: RowIndex) -> Self:
        """Some of the rows."""
        held: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        cut: dict[str, Any] = {
            name: None if values is None else values[index] for name, values in held.items()
        }
        return replace(self, **cut)


class Policy(ABC):
    """A policy as the logs see it: a distribution ``π(·|s_i)`` over the grid for every row.

    Estimators never need it as an [N, A] array. They ask for entries of a table that is indexed by
    (action of the policy, logged action), or for averages of a table over the policy's actions.
    """

    deterministic: ClassVar[bool]

    @abstractmethod
    def pick(self, table_AA: FloatArray, rows: LoggedRows) -> FloatArray:
        """``Σ_a π(a|s_i) table[a, a_i]`` with the logged actions ``a_i``, [N]."""

    @abstractmethod
    def average(self, table_AX: FloatArray, rows: LoggedRows) -> FloatArray:
        """``Σ_a π(a|s_i) table[a]``, [N, X]."""

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

    def pick(self, table_AA: FloatArray, rows: LoggedRows) -> FloatArray:
        """One entry a row."""
        return np.asarray(table_AA[self.chosen_N, rows.action_N])

    def average(self, table_AX: FloatArray, rows: LoggedRows) -> FloatArray:
        """The chosen action's entry."""
        return np.asarray(table_AX[self.chosen_N])

    def probability(self, rows: LoggedRows) -> FloatArray:
        """1 where the policy's action equals the logged one, else 0."""
        return np.asarray(self.chosen_N == rows.action_N, dtype=np.float64)

    def take(self, index: RowIndex) -> ChosenActions:
        """The choices on some of the rows."""
        return ChosenActions(self.chosen_N[index])


@dataclass(frozen=True)
class ActionMixture(Policy):
    """A randomised policy that ignores the request: one distribution over the actions.

    Static weights that are no grid point are valued by interpolation between the grid points
    (:func:`ray_train.production.static_policy`), whose entries may be negative.
    """

    probability_A: FloatArray

    deterministic: ClassVar[bool] = False

    def pick(self, table_AA: FloatArray, rows: LoggedRows) -> FloatArray:
        """The mixed table's entry of the logged action."""
        return np.asarray((self.probability_A @ table_AA)[rows.action_N])

    def average(self, table_AX: FloatArray, rows: LoggedRows) -> FloatArray:
        """The mixed table, the same for every row."""
        mixed_X = self.probability_A @ table_AX
        return np.broadcast_to(mixed_X, (len(rows), len(mixed_X)))

    def probability(self, rows: LoggedRows) -> FloatArray:
        """The probability of each row's logged action."""
        return np.asarray(self.probability_A[rows.action_N])

    def take(self, index: RowIndex) -> ActionMixture:
        """Itself: it does not depend on the row."""
        return self


@dataclass(frozen=True)
class ChosenMixtures(Policy):
    """A policy that picks, on each row, one of T mixtures of grid points.

    Weights between the grid points are valued like this: mixture t stands for the weight vector t of a
    finer grid. Its entries may be negative (interpolation of higher order).
    """

    chosen_N: npt.NDArray[np.int16]
    mixture_TA: FloatArray

    deterministic: ClassVar[bool] = False

    def pick(self, table_AA: FloatArray, rows: LoggedRows) -> FloatArray:
        """One entry a row of the T mixed tables."""
        return np.asarray((self.mixture_TA @ table_AA)[self.chosen_N, rows.action_N])

    def average(self, table_AX: FloatArray, rows: LoggedRows) -> FloatArray:
        """The chosen mixture's average."""
        return np.asarray((self.mixture_TA @ table_AX)[self.chosen_N])

    def probability(self, rows: LoggedRows) -> FloatArray:
        """The weight of each row's logged action in the chosen mixture."""
        return np.asarray(self.mixture_TA[self.chosen_N, rows.action_N])

    def take(self, index: RowIndex) -> ChosenMixtures:
        """The choices on some of the rows."""
        return ChosenMixtures(self.chosen_N[index], self.mixture_TA)


@dataclass(frozen=True)
class Terms:
    """What rows add to an estimator's two sums."""

    row_H: npt.NDArray[np.intp] | None
    """Positions of the rows that add something; None for all of them."""
    numerator_HR: FloatArray
    denominator_HR: FloatArray
    weight_H: FloatArray
    """Importance weights; the effective sample size is made of these."""
    hits: int
    """Rows whose logged action the policy could have taken."""
    spread_HR: FloatArray | None = None
    """Numerators whose noise is the width of the interval; None: the numerators' own noise. An estimator
    with a bias that it knows the size of has more here than its noise. For every policy, or for none."""


class Estimator(ABC):
    """A way to value a policy from logs."""

    name: ClassVar[str]
    formula: ClassVar[str]
    """One line for reports."""

    def prepare(self, rows: LoggedRows) -> LoggedRows:
        """Work on rows that all policies share; what :meth:`terms` is then given."""
        return rows

    @abstractmethod
    def terms(self, rows: LoggedRows, policy: Policy) -> Terms:
        """What each contributing row adds to the numerator and the denominator of every outcome."""


class WeightedEstimator(Estimator):
    """Estimators of the logged outcomes times a weight: subclasses say which weights, and what divides.

    A row whose outcome is null (a metric that was not measured) adds to neither sum of that outcome.
    """

    self_normalised: ClassVar[bool] = True
    """Divide by the sum of the weights; else by the number of rows."""

    def terms(self, rows: LoggedRows, policy: Policy) -> Terms:
        """Only rows with a positive weight; under a uniform grid of A actions that is N / A of them."""
        weight_N = self.weights(rows, policy)
        hit_H = np.flatnonzero(weight_N)
        row_H = hit_H if self.self_normalised else np.arange(len(rows))
        weight_H1 = weight_N[row_H, None]
        outcome_HR = rows.outcome_NR[row_H].astype(np.float64)
        known_HR = ~np.isnan(outcome_HR)
        return Terms(
            row_H=row_H,
            weight_H=weight_N[hit_H],
            numerator_HR=weight_H1 * np.where(known_HR, outcome_HR, 0.0),
            denominator_HR=weight_H1 * known_HR if self.self_normalised else known_HR.astype(np.float64),
            hits=len(hit_H),
        )

    @abstractmethod
    def weights(self, rows: LoggedRows, policy: Policy) -> FloatArray:
        """Importance weights ``w_i``, [N]."""


class InversePropensity(WeightedEstimator):
    """``V̂ = (1/N) Σ_i w_i r_i`` with ``w_i = π(a_i|s_i) / p_i``.

    Inverse propensity scoring (Horvitz & Thompson 1952; Strehl et al., *Learning from Logged Implicit
    Exploration Data*, NeurIPS 2010). Unbiased for any logging policy that gives every action of π a
    positive probability; the noise of Σ w goes into the value, which self-normalisation takes out.
    """

    name: ClassVar[str] = "ips"
    formula: ClassVar[str] = "IPS: mean of w r with w = π(a|s) / p(a|s)"
    self_normalised: ClassVar[bool] = False

    def weights(self, rows: LoggedRows, policy: Policy) -> FloatArray:
        """``π(a_i|s_i) / p_i``."""
        return policy.probability(rows) / rows.propensity_N


class SelfNormalizedIPS(InversePropensity):
    """``V̂ = Σ_i w_i r_i / Σ_i w_i`` with ``w_i = π(a_i|s_i) / p_i``.

    Self-normalised inverse propensity scoring (Swaminathan & Joachims, *The Self-Normalized Estimator
    for Counterfactual Learning*, NeurIPS 2015). Right for any logging policy that gives every action
    of π a positive probability; consistent, with a bias of order 1/N. Under uniform logging and a
    deterministic policy it equals Reward@HIT.
    """

    name: ClassVar[str] = "snips"
    formula: ClassVar[str] = "SNIPS: Σ w r / Σ w with w = π(a|s) / p(a|s)"
    self_normalised: ClassVar[bool] = True


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


def logging_is_uniform(propensity_N: FloatArray, num_actions: int) -> bool:
    """Whether every row was logged uniformly over the grid (to float32 precision)."""
    return bool(np.all(np.abs(propensity_N * num_actions - 1.0) < 1e-4))
