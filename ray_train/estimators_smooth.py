"""Estimators that let neighbouring grid points count.

An exact match of one of 49 actions uses one row in 49, yet the reward changes little from one grid point to
the next. Both estimators here are DR with other weights,

    V̂(π) = (1/N) Σ_i [ q̂(s_i, π) + w_i (r_i - q̂(s_i, a_i)) ],    w_i = Σ_a π(a|s_i) S[a, a_i] / p_i ,

with a smoother S on the grid whose rows sum to 1. ``E[w r | s] = Σ_a S[π(s), a] Q(s, a)`` for any logging
policy with full support. Exact matching is S = 1; what else S does is the bias.

MIPS (:mod:`ray_train.estimators_mips`) is the S that averages over blocks of the grid, under uniform
logging; a kernel that is centred on the policy's own action has less bias for the same number of rows.

Shape legend: N rows, A actions, B basis functions, W controlled weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import NormalDist
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from ray_train.estimators import FloatArray, LoggedRows, Policy, Terms
from ray_train.estimators_basis import ActionBasis
from ray_train.estimators_model import DoublyRobust, ModelEstimator, ModelledRows
from ray_train.estimators_reward import FOLDS, ActionValueModel
from ray_train.evaluation import CHUNK_ROWS, user_chunks, user_starts
from triton_models.surface import Surface

SURE = 0.999
"""How sure it must be that DR and the projection differ before exact matching gets a share."""


MOST_TUNING_ROWS = 1 << 18
"""Rows that the knobs are set from; of more, an even share of the users."""


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
    """``S = (1 - ρ) H + ρ 1``, ``H[a, b] = (1/A) Σ_b s_b φ_b(a) φ_b(b)``: projecting onto a few functions φ.

    H without damping (s = 1) is the pseudo-inverse estimator of Swaminathan et al., *Off-policy Evaluation
    for Slate Recommendation* (NeurIPS 2017), for rewards that are linear in φ(a) given the request, with a
    model of the reward as control variate. Unbiased where ``Q(s, ·)`` is a combination of the φ, whatever it
    is in the request; otherwise it estimates the policy's value under the projected Q, and the rest at π(s)
    is its bias. ``E[w²] = φ(π)·φ(π)``: on average over the grid B instead of A, so the logs count as if
    there were B actions. Weights may be negative. A basis that spans the grid makes it DR.

    The damping s (:meth:`~ray_train.estimators_basis.ActionBasis.damped_hat_AA`) leaves out what these rows
    could not tell from noise anyhow: it vanishes as rows grow. The bias that it leaves is of known size under
    the same prior, and intervals are wide enough for both (:meth:`ActionBasis.doubted_hat_AA
    <ray_train.estimators_basis.ActionBasis.doubted_hat_AA>`): in their width w is made of √s instead of s.

    ρ, the share of exact matching, is 0 unless DR, which needs no assumption on Q, differs from the
    projection by more than noise (:func:`exact_share`).

    The model is averaged with S as well, ``q̂(s, π) = Σ_a S[π(s), a] q̂(s, a)``: it takes noise away and has
    no say in the bias, also where π was chosen to maximise what the model overrates.
    """

    name: ClassVar[str] = "projection_dr"
    formula: ClassVar[str] = (
        "projection DR: DR with w = S[π(s), a] / p(a|s), S the projection onto a few functions of the "
        "weights (exact matching comes in where the two differ beyond noise)"
    )

    def __init__(
        self, model: ActionValueModel, basis: ActionBasis, exact: float = 0.0, *, noise: float = 0.0
    ) -> None:
        if not 0 <= exact <= 1:
            raise ValueError(f"the share of exact matching must lie in [0, 1], got {exact}")
        if not noise >= 0:
            raise ValueError(f"noise must be at least 0, got {noise}")
        self.basis, self.exact, self.noise = basis, exact, noise
        hat_AA = basis.damped_hat_AA(noise)
        smoother_AA = (1.0 - exact) * hat_AA + exact * np.eye(len(hat_AA))
        super().__init__(model, smoother_AA)
        self.predicting_AB = smoother_AA @ model.basis.values_AB
        self._doubt_AA = (1.0 - exact) * (basis.doubted_hat_AA(noise) - hat_AA)

    def terms(self, rows: LoggedRows, policy: Policy) -> Terms:
        """As everywhere; the interval's width counts the bias of the damping, if there is any."""
        prepared = rows if isinstance(rows, ModelledRows) else self.prepare(rows)
        terms = super().terms(prepared, policy)
        if not self.noise or self.exact == 1:
            return terms
        doubt_N = policy.pick(self._doubt_AA, prepared) / prepared.propensity_N
        return replace(terms, spread_HR=terms.numerator_HR + doubt_N[:, None] * prepared.residual_NR)

    @property
    def knobs(self) -> str:
        """φ, the noise and ρ."""
        return (
            f"{self.basis.description}, damped for noise of {self.noise**0.5:.2%} of the value in a "
            f"coefficient; share of exact matching {self.exact:.3f}; intervals count the bias of the damping"
        )


def coefficient_noise(model: ActionValueModel, rows: LoggedRows, outcomes: int) -> float:
    """Variance with which rows tell a coefficient of the reward, relative to the reward's mean over the grid.

    ``ν = (1/n²) Σ_i ((r_i - q̂(s_i, a_i)) / (A p_i))² / V²``, ``V = (1/n) Σ_i r_i / (A p_i)``, the mean over
    the first ``outcomes`` outcomes.
    """
    many, rows = len(rows), rows.take(tuning_rows(rows))
    total = np.zeros((3, outcomes))
    size = len(model.basis.values_AB)
    for start in range(0, len(rows), CHUNK_ROWS):
        prepared = DoublyRobust(model).prepare(rows.take(slice(start, start + CHUNK_ROWS)))
        inverse_N1 = 1.0 / (size * prepared.propensity_N[:, None])
        total[0] += ((prepared.residual_NR[:, :outcomes] * inverse_N1) ** 2).sum(axis=0)
        total[1] += (np.nan_to_num(prepared.outcome_NR[:, :outcomes]) * inverse_N1).sum(axis=0)
        total[2] += prepared.known_NR[:, :outcomes].sum(axis=0)
    square, reward, _ = total
    known = reward > 0
    share = len(rows) / max(many, 1)
    return share * float((square[known] / reward[known] ** 2).mean()) if known.any() else 0.0


def tuning_rows(rows: LoggedRows) -> npt.NDArray[np.bool_]:
    """Which rows knobs are set from: all, or those of every k-th user of every fold."""
    every = max(1, -(-len(rows) // MOST_TUNING_ROWS))
    picked_N: npt.NDArray[np.bool_] = (rows.user_N // FOLDS) % every == 0
    return picked_N if picked_N.any() else np.ones(len(rows), dtype=np.bool_)


def exact_share(
    projection: ProjectionDR, rows: LoggedRows, policies: Sequence[Policy], outcomes: int
) -> float:
    """``ρ = 1 - Σ Var(D) / Σ D²`` with the differences D of DR and the projection, where it is not noise.

    Shrinkage towards the projection, as James & Stein (1961) shrink: D estimates the projection's bias with
    variance Var(D), and ``(1 - ρ)² bias² + ρ² Var(D)`` is least at ``ρ = bias² / (bias² + Var(D))``. One ρ
    for all policies and objectives: their sum is known far better than any of them. ``Σ D²`` must first be
    beyond what noise alone would make it (:data:`SURE` of the time); else ρ is 0, since a share of exact
    matching is paid for in noise. Of very many rows some are looked at. D is relative to the value, and its
    covariance is over users.

    Args:
        projection: the estimator with ρ = 0.
        rows: logged rows, sorted by user.
        policies: policies to look at; those that will be valued.
        outcomes: the first so many outcomes count (the objectives).
    """
    exact = ProjectionDR(projection.model, projection.basis, exact=1.0)
    picked_N, many = tuning_rows(rows), len(rows)
    rows, policies = rows.take(picked_N), [policy.take(picked_N) for policy in policies]
    size = len(policies) * outcomes
    difference_X, value_X, gram_XX = np.zeros(size), np.zeros(size), np.zeros((size, size))
    for part in user_chunks(rows.user_N, CHUNK_ROWS):
        prepared = projection.prepare(rows.take(part))
        first_U = user_starts(prepared.user_N)
        columns = []
        for p, policy in enumerate(policies):
            mine = policy.take(part)
            smooth, sharp = (
                one.terms(prepared, mine).numerator_HR[:, :outcomes] for one in (projection, exact)
            )
            columns.append(np.add.reduceat(sharp - smooth, first_U, axis=0))
            value_X[p * outcomes : (p + 1) * outcomes] += smooth.sum(axis=0)
        difference_UX = np.concatenate(columns, axis=1)
        difference_X += difference_UX.sum(axis=0)
        gram_XX += difference_UX.T @ difference_UX
    known = value_X > 0
    scale_X = value_X[known]
    covariance_XX = gram_XX[np.ix_(known, known)] / np.outer(scale_X, scale_X)
    found = float(((difference_X[known] / scale_X) ** 2).sum())
    if found <= noise_quantile(covariance_XX, SURE):
        return 0.0
    noise = float(np.trace(covariance_XX))
    bias = found - noise  # of these rows; all of them have less noise
    return float(np.clip(bias / (bias + noise * len(rows) / many), 0.0, 1.0)) if bias > 0 else 0.0


def noise_quantile(covariance_XX: FloatArray, share: float) -> float:
    """Quantile of ``|D|²`` for ``D ~ N(0, covariance)``: a scaled χ² with its mean and variance
    (Satterthwaite).

    The χ²'s own quantile by Wilson & Hilferty's cube root.
    """
    mean, square = float(np.trace(covariance_XX)), float((covariance_XX**2).sum())
    if square <= 0:
        return 0.0
    freedom = mean**2 / square
    spread = 2.0 / (9.0 * freedom)
    root: float = 1.0 - spread + NormalDist().inv_cdf(share) * spread**0.5
    return float(mean * max(root, 0.0) ** 3)
