"""A model of the reward, ``q̂(s, a) ≈ E[r | s, a]``, for estimators that want one.

A ridge regression in a few functions φ of the weights (:mod:`ray_train.estimators_basis`) and what is known
of the request, x::

    q̂_r(s, a) = Σ_b φ_b(a) γ_br(s),    γ_b(s) = θ_b + Σ_f x_f(s) θ_bf

where only some products φ_b · x_f are used (:class:`ModelShape`). The features x of a row are the run's own
network Q(s, ·), written in the same functions, and a digest of the state
(:mod:`ray_train.estimators_features`). The network's Q enters as regressors and not as it is: a policy that
maximises Q prefers what Q overrates, so Q believed at its word flatters the policy (the winner's curse),
while a slope that was fitted on other users' rewards takes out what is noise.

Cross-fitting (Chernozhukov et al., *Double/debiased machine learning*, 2018): users fall into folds, and a
row's q̂ was fitted on the other folds, so q̂ does not depend on the row's own reward or action.

One pass over the rows adds up Gram matrices per fold; memory does not grow with the rows, and the result is
the same whatever the chunks.

Shape legend: N rows, F features, B basis functions, R outcomes, M objectives, D columns of the design,
K folds, A actions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ray_train.estimators import FloatArray, LoggedRows
from ray_train.estimators_basis import ActionBasis

FOLDS = 5
PENALTY_ROWS = 30.0
"""Ridge penalty, as so many rows' worth of evidence that a coefficient of a standardised feature is zero."""
MODEL_CHUNK_ROWS = 16_384
CLIP = 6.0
"""Standardised features are cut off here: one odd row must not carry a fold."""


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """Which products of features and basis functions a model has, besides every function by itself."""

    products: tuple[tuple[int, int], ...]
    """(feature f, function b): the column ``x_f(s) φ_b(a)``; b = 0 is the feature by itself."""


class ActionValueModel(ABC):
    """``q̂(s, a) = Σ_b φ_b(a) γ_b(s)`` for every outcome."""

    basis: ActionBasis

    @abstractmethod
    def coefficients(self, rows: LoggedRows) -> FloatArray:
        """``γ`` of every row, [N, B, R]."""


class NetworkModel(ActionValueModel):
    """The network's own Q as it is, from the first M·B features; 0 for guardrail metrics.

    The network was fitted on the training window, which is earlier than the hold-out: no folds are needed.
    DR is unbiased with it; DM and the smoothing estimators inherit the winner's curse.
    """

    def __init__(self, basis: ActionBasis, objectives: int) -> None:
        self.basis = basis
        self._objectives = objectives

    def coefficients(self, rows: LoggedRows) -> FloatArray:
        """What the features say."""
        out_NBR = np.zeros((len(rows), self.basis.size, rows.outcome_NR.shape[1]))
        m, b = self._objectives, self.basis.size
        if rows.feature_NF is None:
            raise ValueError("the network's Q is not among the rows' features")
        out_NBR[:, :, :m] = rows.feature_NF[:, : m * b].reshape(len(rows), m, b).transpose(0, 2, 1)
        return out_NBR


class RewardModel(ActionValueModel):
    """Cross-fitted ridge; see the module docstring."""

    def __init__(self, design: _Design, coefficient_KDR: FloatArray) -> None:
        self.basis = design.basis
        self._design = design
        self._coefficient_KDR = coefficient_KDR

    @classmethod
    def fit(
        cls,
        rows: LoggedRows,
        basis: ActionBasis,
        shape: ModelShape,
        *,
        folds: int = FOLDS,
        penalty_rows: float = PENALTY_ROWS,
    ) -> RewardModel:
        """Fit on logged rows; with one fold nothing is held out (for other rows, or hand-made cases)."""
        design = _Design(basis, shape, *_moments(rows.feature_NF))
        sums = _fold_sums(rows, design, folds)
        return cls(design, sums.solve(design.penalties(penalty_rows)))

    def coefficients(self, rows: LoggedRows) -> FloatArray:
        """``γ`` of every row, from the other folds' model: [N, B, R]."""
        x_NF = self._design.features(rows)
        folds, _, outcomes = self._coefficient_KDR.shape
        if folds == 1:
            return _last(self._design.expand(self._coefficient_KDR[0], x_NF), outcomes)
        out_NX = np.empty((len(rows), outcomes * self.basis.size))
        fold_N = rows.user_N % folds
        for k in range(folds):
            inside = np.flatnonzero(fold_N == k)
            out_NX[inside] = self._design.expand(self._coefficient_KDR[k], x_NF[inside])
        return _last(out_NX, outcomes)


def _last(out_NX: FloatArray, outcomes: int) -> FloatArray:
    """[N, R·B] → [N, B, R], a view."""
    return out_NX.reshape(len(out_NX), outcomes, -1).swapaxes(1, 2)


class _Design:
    """Rows → regressors: φ(a), then the products."""

    def __init__(
        self, basis: ActionBasis, shape: ModelShape, mean_F: FloatArray, scale_F: FloatArray
    ) -> None:
        self.basis = basis
        self._mean_F, self._scale_F = mean_F, scale_F
        products = [(f, b) for f, b in shape.products if f < len(mean_F)]
        self._features = np.array([f for f, _ in products], dtype=np.intp)
        self._functions = np.array([b for _, b in products], dtype=np.intp)

    @property
    def columns(self) -> int:
        """D."""
        return self.basis.size + len(self._features)

    def penalties(self, rows: float) -> FloatArray:
        """Ridge penalty of every column: products of higher order are less likely, φ by itself is free."""
        products = rows * (1.0 + self.basis.order_B[self._functions]) ** 2
        return np.concatenate([np.full(self.basis.size, 1e-6), products])

    def features(self, rows: LoggedRows) -> FloatArray:
        """Standardised features, [N, F]."""
        if rows.feature_NF is None:
            return np.zeros((len(rows), 0))
        x_NF = rows.feature_NF.astype(np.float64)
        x_NF -= self._mean_F
        x_NF /= self._scale_F
        return np.clip(x_NF, -CLIP, CLIP, out=x_NF)

    def regressors(self, rows: LoggedRows) -> FloatArray:
        """Regressors of the logged actions, [N, D]."""
        product_NP = np.take(self.features(rows), self._features, axis=1)
        product_NP *= self.basis.values_AB[:, self._functions][rows.action_N]
        return np.concatenate([self.basis.values_AB[rows.action_N], product_NP], axis=1)

    def expand(self, coefficient_DR: FloatArray, x_NF: FloatArray) -> FloatArray:
        """γ of rows, [N, R·B]: what follows reads the functions of one outcome together."""
        size, outcomes = self.basis.size, coefficient_DR.shape[1]
        slope_FBR = np.zeros((x_NF.shape[1], size, outcomes))
        # A product may be named twice: slopes add up. Most are 0, yet one matrix product is the fastest way.
        np.add.at(slope_FBR, (self._features, self._functions), coefficient_DR[size:])
        out_NX = x_NF @ slope_FBR.swapaxes(1, 2).reshape(-1, outcomes * size)
        out_NX += coefficient_DR[:size].T.reshape(-1)
        return np.asarray(out_NX)


class _Sums:
    """Gram matrices and right-hand sides of K folds; outcomes with nulls have their own."""

    def __init__(self, folds: int, columns: int, outcomes: int, nulls_R: npt.NDArray[np.bool_]) -> None:
        # Outcomes without nulls share Gram matrix 0.
        self.gram_of_R = np.where(nulls_R, np.cumsum(nulls_R), 0)
        grams = int(self.gram_of_R.max(initial=0)) + 1
        self.gram_GKDD = np.zeros((grams, folds, columns, columns))
        self.rows_GK = np.zeros((grams, folds))
        self.right_KDR = np.zeros((folds, columns, outcomes))

    def add(self, k: int, design_ND: FloatArray, target_NR: FloatArray) -> None:
        known_NR: npt.NDArray[np.bool_] = ~np.isnan(target_NR)
        self.right_KDR[k] += design_ND.T @ np.where(known_NR, target_NR, 0.0)
        for g in range(len(self.gram_GKDD)):
            part = design_ND
            if g:
                outcome = int(np.flatnonzero(self.gram_of_R == g)[0])
                part = design_ND[known_NR.T[outcome]]
            self.gram_GKDD[g, k] += part.T @ part
            self.rows_GK[g, k] += len(part)

    def solve(self, penalty_D: FloatArray) -> FloatArray:
        """Coefficients of every fold from the sums of the others, [K, D, R]; a lone fold uses its own."""
        folds, columns, outcomes = self.right_KDR.shape
        out_KDR = np.zeros((folds, columns, outcomes))
        for k in range(folds):
            others = [j for j in range(folds) if j != k] or [k]
            for g in range(len(self.gram_GKDD)):
                which = np.flatnonzero(self.gram_of_R == g)
                if not len(which) or not self.rows_GK[g, others].sum():
                    continue
                gram = self.gram_GKDD[g, others].sum(axis=0) + np.diag(penalty_D)
                right = self.right_KDR[others][:, :, which].sum(axis=0)
                out_KDR[k][:, which] = np.linalg.solve(gram, right)
        return out_KDR


def _fold_sums(rows: LoggedRows, design: _Design, folds: int) -> _Sums:
    outcomes = rows.outcome_NR.shape[1]
    sums = _Sums(folds, design.columns, outcomes, np.isnan(rows.outcome_NR).any(axis=0))
    for start in range(0, len(rows), MODEL_CHUNK_ROWS):
        part = rows.take(slice(start, start + MODEL_CHUNK_ROWS))
        design_ND = design.regressors(part)
        target_NR = part.outcome_NR.astype(np.float64)
        fold_N = part.user_N % folds
        for k in range(folds):
            inside = fold_N == k
            sums.add(k, design_ND[inside], target_NR[inside])
    return sums


def _moments(feature_NF: npt.NDArray[np.floating[Any]] | None) -> tuple[FloatArray, FloatArray]:
    if feature_NF is None or not len(feature_NF):
        return np.zeros(0), np.ones(0)
    mean_F = feature_NF.mean(axis=0, dtype=np.float64)
    square_F = np.zeros_like(mean_F)
    for start in range(0, len(feature_NF), MODEL_CHUNK_ROWS):  # NumPy's own std holds all rows as float64
        off_NF = feature_NF[start : start + MODEL_CHUNK_ROWS].astype(np.float64)
        off_NF -= mean_F
        square_F += np.einsum("nf,nf->f", off_NF, off_NF)
    scale_F = np.sqrt(square_F / len(feature_NF))
    return mean_F, np.where(scale_F > 1e-9, scale_F, 1.0)
