"""Estimators with a model of the reward: DM, DR, Switch-DR and DR with optimistic shrinkage.

All have the form

    V̂(π) = (1/N) Σ_i [ q̂(s_i, π) + ŵ_i (r_i - q̂(s_i, a_i)) ],    w_i = π(a_i|s_i) / p_i ,

and differ in ŵ. ``q̂(s, π) = Σ_a π(a|s) q̂(s, a)`` comes from a cross-fitted
:class:`~ray_train.estimators_reward.RewardModel`. Every row counts; a null outcome counts in neither sum.

Shape legend: N rows, B basis functions, R outcomes, A actions.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ray_train.estimators import Estimator, FloatArray, LoggedRows, Policy, Terms
from ray_train.estimators_reward import ActionValueModel


@dataclass(frozen=True, kw_only=True)
class ModelledRows(LoggedRows):
    """Logged rows with what the model of the reward says about them."""

    coefficient_NBR: FloatArray
    """γ: ``q̂(s_i, a) = Σ_b φ_b(a) γ_ib``."""
    residual_NR: FloatArray
    """``r_i - q̂(s_i, a_i)``; 0 where the outcome is null."""
    known_NR: FloatArray
    """1 where the outcome is known, else 0."""


class ModelEstimator(Estimator):
    """Estimators of the module's form; subclasses say what ŵ is."""

    def __init__(self, model: ActionValueModel) -> None:
        self.model = model
        self.predicting_AB = model.basis.values_AB
        """φ̃: ``q̂(s, π)`` is ``Σ_a π(a|s) φ̃(a)·γ(s)``."""

    @property
    def knobs(self) -> str:
        """What was set, for reports."""
        return ""

    def prepare(self, rows: LoggedRows) -> ModelledRows:
        """Ask the model once for all policies."""
        coefficient_NBR = self.model.coefficients(rows)
        phi_NB = self.model.basis.values_AB[rows.action_N]
        residual_NR = rows.outcome_NR - np.einsum("nb,nbr->nr", phi_NB, coefficient_NBR)
        known_NR = ~np.isnan(rows.outcome_NR)
        return ModelledRows(
            user_N=rows.user_N,
            action_N=rows.action_N,
            propensity_N=rows.propensity_N,
            outcome_NR=rows.outcome_NR,
            feature_NF=rows.feature_NF,
            coefficient_NBR=coefficient_NBR,
            # One column after the other: what is done with them for every policy then runs along the rows.
            residual_NR=np.asfortranarray(np.where(known_NR, residual_NR, 0.0)),
            known_NR=known_NR.astype(np.float64, order="F"),
        )

    def terms(self, rows: LoggedRows, policy: Policy) -> Terms:
        """Every row, with denominator 1."""
        if not isinstance(rows, ModelledRows):
            rows = self.prepare(rows)
        weight_N = self.weights(rows, policy)
        phi_NB = policy.average(self.predicting_AB, rows)
        numerator_NR = np.empty_like(rows.residual_NR)
        np.einsum("nb,nbr->nr", phi_NB, rows.coefficient_NBR, out=numerator_NR)
        numerator_NR *= rows.known_NR
        numerator_NR += weight_N[:, None] * rows.residual_NR
        return Terms(
            row_H=None,
            numerator_HR=numerator_NR,
            denominator_HR=rows.known_NR,
            weight_H=self.reported_weights(rows, policy, weight_N),
            hits=int(np.count_nonzero(policy.probability(rows))),
        )

    def reported_weights(self, rows: LoggedRows, policy: Policy, weight_N: FloatArray) -> FloatArray:
        """What the effective sample size is made of: the weights of the residuals."""
        return weight_N

    @abstractmethod
    def weights(self, rows: LoggedRows, policy: Policy) -> FloatArray:
        """Weights ``ŵ_i`` of the residuals, [N]."""


class DirectMethod(ModelEstimator):
    """``V̂ = (1/N) Σ_i q̂(s_i, π)``: ŵ = 0.

    The model's word for it (Beygelzimer & Langford, *The Offset Tree*, KDD 2009): little noise, and all
    of the model's bias, which no interval knows about. Not for decisions.
    """

    name: ClassVar[str] = "dm"
    formula: ClassVar[str] = "DM: mean of q̂(s, π), a cross-fitted model of the reward (biased like the model)"

    def weights(self, rows: LoggedRows, policy: Policy) -> FloatArray:
        """Zero."""
        return np.zeros(len(rows))

    def reported_weights(self, rows: LoggedRows, policy: Policy, weight_N: FloatArray) -> FloatArray:
        """``π(a_i|s_i) / p_i``: what the logs hold about the policy, model or not."""
        return policy.probability(rows) / rows.propensity_N


class DoublyRobust(ModelEstimator):
    """``ŵ = w``: right if either the propensities or the model are.

    Dudík, Langford & Li, *Doubly Robust Policy Evaluation and Learning* (ICML 2011), cross-fitted. With
    logged propensities it is unbiased whatever the model; the better the model, the less noise.
    """

    name: ClassVar[str] = "dr"
    formula: ClassVar[str] = "DR: mean of q̂(s, π) + w (r - q̂(s, a)), q̂ cross-fitted by user"

    def weights(self, rows: LoggedRows, policy: Policy) -> FloatArray:
        """``π(a_i|s_i) / p_i``."""
        return policy.probability(rows) / rows.propensity_N


class SwitchDR(DoublyRobust):
    """``ŵ = w · 1{w ≤ τ}``: where the weight is large, believe the model.

    Wang, Agarwal & Dudík, *Optimal and Adaptive Off-policy Evaluation in Contextual Bandits* (ICML 2017).
    Under uniform logging a deterministic policy's weights are 0 or A: with τ < A this is DM, with τ ≥ A it
    is DR; between them lies nothing, which is what DRos is for.
    """

    name: ClassVar[str] = "switch_dr"
    formula: ClassVar[str] = "Switch-DR: DR with w = 0 where w > τ"

    def __init__(self, model: ActionValueModel, threshold: float) -> None:
        super().__init__(model)
        if not threshold >= 0:
            raise ValueError(f"threshold must be at least 0, got {threshold}")
        self.threshold = threshold

    @property
    def knobs(self) -> str:
        """τ."""
        return f"τ = {self.threshold:g}"

    def weights(self, rows: LoggedRows, policy: Policy) -> FloatArray:
        """``w`` where it is at most τ."""
        weight_N = super().weights(rows, policy)
        return np.where(weight_N <= self.threshold, weight_N, 0.0)


class ShrunkDR(DoublyRobust):
    """``ŵ = λ w / (w² + λ)``: DR with optimistic shrinkage (DRos).

    Su, Dimakopoulou, Krishnamurthy & Dudík, *Doubly Robust Off-policy Evaluation with Shrinkage* (ICML
    2020). λ → ∞ is DR, λ = 0 is DM; between them the model's bias is traded for noise.
    """

    name: ClassVar[str] = "dros"
    formula: ClassVar[str] = "DRos: DR with the weights shrunk to λ w / (w² + λ)"

    def __init__(self, model: ActionValueModel, shrinkage: float) -> None:
        super().__init__(model)
        if not shrinkage >= 0:
            raise ValueError(f"shrinkage must be at least 0, got {shrinkage}")
        self.shrinkage = shrinkage

    @property
    def knobs(self) -> str:
        """λ."""
        return f"λ = {self.shrinkage:g}"

    def weights(self, rows: LoggedRows, policy: Policy) -> FloatArray:
        """``λ w / (w² + λ)``."""
        weight_N = super().weights(rows, policy)
        if np.isinf(self.shrinkage):
            return weight_N
        down_N = weight_N**2 + self.shrinkage
        return np.divide(self.shrinkage * weight_N, down_N, out=np.zeros_like(weight_N), where=down_N > 0)
