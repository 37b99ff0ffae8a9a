"""Weights between the grid points that were explored: what the network and the logs say of them.

Every step of a controlled weight's grid is divided by a factor. On the finer grid of T weight vectors both
the choice and its value are interpolated by natural cubic splines, one per weight (a tensor product), over
the weights' logarithms where these exist, as in :func:`ray_train.estimators_basis.ratio_basis`,

    Q_m(s, t) = Σ_a C[t, a] Q_m(s, a),        π(s) = argmax_t Σ_m λ_m Q_m(s, t),
    V(π) = E Σ_a C[π(s), a] Q(s, a),

with the rows of C summing to 1 and C[t, a] = 1{t is a} where t is a point of the explored grid. (A
multilinear interpolation is largest at a grid point whatever the network says: there is nothing to choose.)
For valuation the policy is thus a mixture of explored actions, some with negative weights
(:class:`ray_train.estimators.ChosenMixtures`); no logged row has its weights. So only estimators that let
neighbouring grid points count can value it, under one more assumption, that Q is as smooth between the points
as the spline is: such points are *extrapolated*.

They are a question to the next exploration, not an operating point: in the simulated feed the spline errs by
less than 0.1 % of the value in most of the grid but by up to 3.5 % below the second smallest weights, where
they grow fourfold in a step, and choosing from the finer grid is worth about 0.1 % (benchmarks/RESULTS.md).
The served model has the explored grid. To serve finer weights, explore them (``points`` of the surface).

Shape legend: K grid values of one weight, F finer ones, W controlled weights, A actions, T finer actions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from triton_models.errors import ConfigurationError
from triton_models.surface import MAX_ACTIONS, FloatArray, Surface


@dataclass(frozen=True)
class FinerGrid:
    """A finer grid over the ranges of a surface's weights."""

    weights_TW: FloatArray
    mixture_TA: FloatArray
    """C, the interpolation from explored actions."""
    action_T: npt.NDArray[np.int16]
    """The explored action with these weights; -1 between them."""


def finer_grid(surface: Surface, factor: int) -> FinerGrid:
    """The grid with every step divided by ``factor``, numbered as actions are (the last weight fastest).

    Raises:
        ConfigurationError: more weight vectors than a grid may have.
    """
    sizes = [(weight.points - 1) * factor + 1 for weight in surface.controlled]
    total = int(np.prod(sizes))
    if total > MAX_ACTIONS:
        shown = " x ".join(map(str, sizes))
        raise ConfigurationError(
            f"finer by {factor} makes {shown} = {total} weight vectors, more than the limit of "
            f"{MAX_ACTIONS}; choose a smaller factor"
        )
    axes = [
        np.linspace(weight.minimum, weight.maximum, size)
        for weight, size in zip(surface.controlled, sizes, strict=True)
    ]
    mixture_TA = np.ones((1, 1))
    for axis in axes:
        scale = np.log(axis) if axis[0] > 0 else axis
        mixture_TA = np.kron(mixture_TA, spline_matrix(scale[::factor], scale))
    index_TW = np.stack(np.unravel_index(np.arange(total), sizes), axis=1)
    on_grid_T = (index_TW % factor == 0).all(axis=1)
    explored_T = np.ravel_multi_index(
        tuple((index_TW // factor).T), [weight.points for weight in surface.controlled]
    )
    return FinerGrid(
        weights_TW=np.stack([axis[index] for axis, index in zip(axes, index_TW.T, strict=True)], axis=1),
        mixture_TA=mixture_TA,
        action_T=np.where(on_grid_T, explored_T, -1).astype(np.int16),
    )


def spline_matrix(knots_K: FloatArray, places_F: FloatArray) -> FloatArray:
    """Values at K increasing knots → the natural cubic spline through them at F places among them, [F, K].

    The second derivatives M solve
    ``h_{k-1} M_{k-1} + 2 (h_{k-1} + h_k) M_k + h_k M_{k+1} = 6 (s_k - s_{k-1})`` with the gaps h, the slopes
    ``s_k = (y_{k+1} - y_k) / h_k`` and ``M_0 = M_{K-1} = 0``. Between two knots, at the share u, it is
    ``(1-u) y_k + u y_{k+1} + h_k² [((1-u)³ - (1-u)) M_k + (u³ - u) M_{k+1}] / 6``.
    """
    points, gap = len(knots_K), np.diff(knots_K)
    unit_KK = np.eye(points)
    slope_KK = (unit_KK[1:] - unit_KK[:-1]) / gap[:, None]
    system, right = np.eye(points), np.zeros((points, points))
    for k in range(1, points - 1):
        system[k, k - 1 : k + 2] = gap[k - 1], 2.0 * (gap[k - 1] + gap[k]), gap[k]
        right[k] = 6.0 * (slope_KK[k] - slope_KK[k - 1])
    second_KK = np.linalg.solve(system, right)
    left_F = np.clip(np.searchsorted(knots_K, places_F, side="right") - 1, 0, points - 2)
    u_F1 = ((places_F - knots_K[left_F]) / gap[left_F])[:, None]
    v_F1 = 1.0 - u_F1
    bend_FK = (v_F1**3 - v_F1) * second_KK[left_F] + (u_F1**3 - u_F1) * second_KK[left_F + 1]
    return np.asarray(
        v_F1 * unit_KK[left_F] + u_F1 * unit_KK[left_F + 1] + gap[left_F, None] ** 2 * bend_FK / 6.0
    )
