"""Estimators that let neighbouring grid points count.

An exact match of one of 49 actions uses one row in 49, yet the reward changes little from one grid point to
the next. Both estimators here are DR with other weights,

    V̂(π) = (1/N) Σ_i [ q̂(s_i, π) + w_i (r_i - q̂(s_i, a_i)) ],    w_i = Σ_a π(a|s_i) S[a, a_i] / p_i ,

with a smoother S on the grid whose rows sum to 1. ``E[w r | s] = Σ_a S[π(s), a] Q(s, a)`` for any logging
policy with full support. Exact matching is S = 1; what else S does is the bias.

MIPS (Saito & Joachims, *Off-Policy Evaluation for Large Action Spaces via Embeddings*, ICML 2022) with
blocks of the grid as embeddings is the S that averages over blocks, under uniform logging; a kernel that is
centred on the policy's own action has less bias for the same number of rows, so that is what is here.

Shape legend: N rows, A actions, B basis functions, W controlled weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from ray_train.estimators import FloatArray, LoggedRows, Policy
from ray_train.estimators_basis import ActionBasis
from ray_train.estimators_model import ModelEstimator
from ray_train.estimators_reward import ActionValueModel
from ray_train.evaluation import CHUNK_ROWS, user_chunks
from triton_models.surface import Surface


class SmoothedDR(ModelEstimator):
    """DR through a smoother on the grid; subclasses say which."""

    def __init__(self, model: ActionValueModel, smoother_AA: FloatArray) -> None:
        super().__init__(model)
        self.smoother_AA = smoother_AA

    def weights(self, rows: LoggedRows, policy: Policy) -> FloatArray:
        """``Σ_a π(a|s_i) S[a, a_i] / p_i``."""
        return policy.pick(self.smoother_AA, rows) / rows.propensity_N


class KernelDR(SmoothedDR):
    """``S[a, b] ∝ Π_w k((a_w - b_w) / h)``, ``k(u) = (1 - u²)₊`` (Epanechnikov), rows sum to 1.

    Kallus & Zhou, *Policy Evaluation and Optimization with Continuous Treatments* (AISTATS 2018), on a
    grid. The bandwidth h is in grid steps, so that every controlled weight is blurred by as many of its own
    steps; h ≤ 1 is exact matching. Bias ``E[(S - 1)(Q - q̂)(s, π(s))]``: of order h² times the curvature of
    Q - q̂, and of order h times its slope at the border of the grid, where the kernel is one-sided.
    """

    name: ClassVar[str] = "kernel_dr"
    formula: ClassVar[str] = "kernel DR: DR with w = K_h(π(s), a) / p(a|s) over the weight grid (small bias)"

    def __init__(self, model: ActionValueModel, surface: Surface, bandwidth_steps: float) -> None:
        if not bandwidth_steps > 0:
            raise ValueError(f"bandwidth_steps must be positive, got {bandwidth_steps}")
        self.bandwidth_steps = bandwidth_steps
        super().__init__(model, kernel_smoother(surface, bandwidth_steps))

    @property
    def knobs(self) -> str:
        """h."""
        return f"bandwidth {self.bandwidth_steps:g} grid steps"


def kernel_smoother(surface: Surface, bandwidth_steps: float) -> FloatArray:
    """The normalised product kernel over the grid, [A, A]."""
    smoother = np.ones((1, 1))
    for weight in surface.controlled:
        distance = np.subtract.outer(np.arange(weight.points), np.arange(weight.points)) / bandwidth_steps
        kernel = np.maximum(1.0 - distance**2, 0.0)
        smoother = np.kron(smoother, kernel / kernel.sum(axis=1, keepdims=True))
    return smoother


class ProjectionDR(SmoothedDR):
    """``S = (1 - ρ) H + ρ 1``, ``H[a, b] = (1/A) φ(a)·φ(b)``: projecting onto a few functions φ.

    H alone is the pseudo-inverse estimator of Swaminathan et al., *Off-policy Evaluation for Slate
    Recommendation* (NeurIPS 2017), for rewards that are linear in φ(a) given the request, with a model of the
    reward as control variate. Unbiased where ``Q(s, ·)`` is a combination of the φ, whatever it is in the
    request; otherwise it estimates the policy's value under the projected Q, and the rest at π(s) is its
    bias. ``E[w²] = φ(π)·φ(π)``: on average over the grid B instead of A, so the logs count as if there were B
    actions. Weights may be negative. A basis that spans the grid makes it DR.

    ρ, the share of exact matching, keeps the bias within what the noise would hide anyhow
    (:func:`exact_share`): more rows, more of it.

    The model is averaged with S as well, ``q̂(s, π) = Σ_a S[π(s), a] q̂(s, a)``: it takes noise away and has
    no say in the bias, also where π was chosen to maximise what the model overrates.
    """

    name: ClassVar[str] = "projection_dr"
    formula: ClassVar[str] = (
        "projection DR: DR with w = S[π(s), a] / p(a|s), S between the projection onto a few functions of "
        "the weights and exact matching"
    )

    def __init__(self, model: ActionValueModel, basis: ActionBasis, exact: float = 0.0) -> None:
        if not 0 <= exact <= 1:
            raise ValueError(f"the share of exact matching must lie in [0, 1], got {exact}")
        self.basis, self.exact = basis, exact
        smoother_AA = (1.0 - exact) * basis.hat_AA + exact * np.eye(len(basis.hat_AA))
        super().__init__(model, smoother_AA)
        self.predicting_AB = smoother_AA @ model.basis.values_AB

    @property
    def knobs(self) -> str:
        """φ and ρ."""
        return f"{self.basis.description}; share of exact matching {self.exact:.3f}"


def exact_share(
    projection: ProjectionDR, rows: LoggedRows, policies: Sequence[Policy], outcomes: int
) -> float:
    """``ρ = max(0, 1 - Σ Var(D) / Σ D²)`` with the differences D of DR and the projection.

    Shrinkage towards the projection, as James & Stein (1961) shrink: D estimates the projection's bias with
    variance Var(D), and ``(1 - ρ)² bias² + ρ² Var(D)`` is least at ``ρ = bias² / (bias² + Var(D))``. One ρ
    for all policies and objectives: their sum is known far better than any of them. D is relative to the
    value, and its variance is over users.

    Args:
        projection: the estimator with ρ = 0.
        rows: logged rows, sorted by user.
        policies: policies to look at; those that will be valued.
        outcomes: the first so many outcomes count (the objectives).
    """
    exact = ProjectionDR(projection.model, projection.basis, exact=1.0)
    total = np.zeros((len(policies), outcomes, 3))
    for part in user_chunks(rows.user_N, CHUNK_ROWS):
        prepared = projection.prepare(rows.take(part))
        first_U = np.flatnonzero(np.diff(prepared.user_N, prepend=prepared.user_N[:1] - 1))
        for p, policy in enumerate(policies):
            mine = policy.take(part)
            smooth, sharp = (one.terms(prepared, mine).numerator_HR for one in (projection, exact))
            difference_UR = np.add.reduceat((sharp - smooth)[:, :outcomes], first_U, axis=0)
            total[p, :, 0] += difference_UR.sum(axis=0)
            total[p, :, 1] += (difference_UR**2).sum(axis=0)
            total[p, :, 2] += smooth[:, :outcomes].sum(axis=0)
    difference, square, value = np.moveaxis(total, -1, 0)
    known = value > 0
    bias = ((difference / np.where(known, value, 1.0)) ** 2)[known].sum()
    noise = (square / np.where(known, value, 1.0) ** 2)[known].sum()
    return float(np.clip(1.0 - noise / bias, 0.0, 1.0)) if bias > 0 else 0.0
