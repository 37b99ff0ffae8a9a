"""Functions on the grid of weights: what estimators that share strength over it are made of.

A basis is B functions φ_b of the action, orthonormal over the grid, ``(1/A) Σ_a φ_b(a) φ_c(a) = 1{b = c}``,
the constant first. A function f on the grid has the coefficients ``(1/A) Σ_a f(a) φ_b(a)``, and the best
approximation of its kind is what they make. Two kinds:

* *utility*: polynomials of the logarithms of the weights' ratios, and of ``1 / g``, g the geometric mean of
  the
  controlled weights. The utility is linear in the weights (Eq. 1), so a ranking does not change when all of
  them grow by one factor: dividing by g, ``Σ_j (w_j / g) h_j + (1 / g) Σ_fixed w_i h_i`` says that the ratios
  and 1/g are all there is. 1/g is how much the fixed heads weigh beside the controlled ones: little (almost
  90 % of production utility are the controlled heads', Eq. 11), so few powers of it are enough.
* *polynomials* of the min-max normalised weights (Eq. 6): no such assumption, more functions for as good an
  approximation.

Shape legend: A actions, B basis functions, n states, M objectives, K points of one weight, W weights,
T weight vectors, X coordinates.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from triton_models.surface import Surface

FloatArray = npt.NDArray[np.float64]

DEGREE = 4
"""Total degree of a polynomial basis."""
RATIO_DEGREE, SCALE_DEGREE = 8, 2
"""Degrees of a utility basis in the log ratios and in 1 / g; chosen by measurement
(benchmarks/RESULTS.md)."""
BETWEEN_RATIO_DEGREE, LEAST_RATIO_DEGREE = 6, 4
"""Highest and lowest for :func:`interpolation`, which nothing damps; below, a cell's corners say more."""
DECAY = 0.45
"""A coefficient of order d is about ``DECAY^d`` of the value; measured in the simulated feed."""
SCALE_ORDER, NEXT_SCALE_ORDER = 4, 3
"""Orders that the first power of 1 / g counts, and each further one: measured coefficients of 1 / g are
0.01 to 0.04 of the value, those of its square 0.001 to 0.005 (benchmarks/RESULTS.md)."""


@dataclass(frozen=True)
class ActionBasis:
    """Orthonormal functions on the grid, the constant first."""

    values_AB: FloatArray
    order_B: npt.NDArray[np.int64]
    """How wild a function is, 0 for the constant: models shrink those of higher order more."""
    description: str

    @property
    def size(self) -> int:
        """B."""
        return len(self.order_B)

    @cached_property
    def hat_AA(self) -> FloatArray:
        """``H[a, b] = (1/A) φ(a)·φ(b)``: projects functions on the grid onto the basis; rows sum to 1."""
        return np.asarray(self.values_AB @ self.values_AB.T / len(self.values_AB))

    def damped_hat_AA(self, noise: float) -> FloatArray:
        """``(1/A) Σ_b s_b φ_b φ_bᵀ`` with ``s_b = τ_b² / (τ_b² + noise)``, ``τ_b = DECAY^d_b``, ``s_0 = 1``.

        The best linear guess of a function from its noisy coefficients, if a coefficient of order d is of the
        size τ_b and is read with a variance of ``noise``, both relative to the function's mean (a ridge
        regression; kriging). No noise: :attr:`hat_AA`. Rows sum to 1.
        """
        return self._weighted_AA(self._kept_B(noise))

    def doubted_hat_AA(self, noise: float) -> FloatArray:
        """``(1/A) Σ_b √s_b φ_b φ_bᵀ``: its noise is :meth:`damped_hat_AA`'s, and the bias to be expected.

        Under the same prior the squared error of a damped coefficient is ``s_b² noise`` (what the rows add)
        and ``(1 - s_b)² τ_b²`` (what was damped away) in the mean, together its posterior variance
        ``s_b noise``: the variance of the coefficient read with a weight of √s_b. Intervals of that width are
        Wahba's (*Bayesian "Confidence Intervals" for the Cross-validated Smoothing Spline*, 1983); they cover
        on average over the function (Nychka 1988).
        """
        return self._weighted_AA(np.sqrt(self._kept_B(noise)))

    def _kept_B(self, noise: float) -> FloatArray:
        prior_B = DECAY ** (2.0 * self.order_B)
        return np.where(self.order_B == 0, 1.0, prior_B / (prior_B + noise))

    def _weighted_AA(self, weight_B: FloatArray) -> FloatArray:
        return np.asarray((self.values_AB * weight_B) @ self.values_AB.T / len(self.values_AB))

    def coefficients(self, values_nAM: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """``(1/A) Σ_a f(a) φ_b(a)`` of functions given on the grid, [n, M, B]."""
        phi_AB = (self.values_AB / len(self.values_AB)).astype(np.float32)
        return np.asarray(np.swapaxes(values_nAM, 1, 2).astype(np.float32) @ phi_AB)


def utility_basis(
    surface: Surface, degree: int = RATIO_DEGREE, scale_degree: int = SCALE_DEGREE
) -> ActionBasis:
    """Products of powers ``p_j`` of the log ratios and q of 1/g with
    ``Σ p_j / degree + q / scale_degree ≤ 1``.

    With ``scale_degree`` 0 it knows ratios only. A single weight has no ratios: then powers of ``log w``.
    Weights that may be 0 or less have no logarithm: then it is :func:`polynomial_basis`. The functions are
    made orthonormal from the lowest order to the highest: what the ratios can say is theirs.
    """
    if any(weight.minimum <= 0 for weight in surface.controlled):
        return polynomial_basis(surface)
    powers = sorted(
        _utility_powers(surface, degree, scale_degree), key=lambda p: (_utility_order(p), p[-1], p)
    )
    values_AB, kept = _orthonormal(_utility_columns(surface, surface.actions, powers))
    told = f" and of their scale up to {scale_degree}" if scale_degree and len(surface.controlled) > 1 else ""
    return ActionBasis(
        values_AB * np.sqrt(len(values_AB)),
        np.array([_utility_order(powers[b]) for b in kept]),
        f"{len(kept)} polynomials of the weights' log ratios up to degree {degree}{told}",
    )


def interpolation(surface: Surface, weights_TW: npt.ArrayLike) -> FloatArray:
    """Weights over the grid that carry a function from the grid to other weight vectors, [T, A].

    ``f(w) ≈ Σ_a c_a(w) f(a)``: the least-squares fit of the functions of :func:`utility_basis` to the grid,
    read off at w. Of the degrees the highest one that needs no more rows than the multilinear mixture of the
    surrounding grid points does (``Σ c²``); the mixture itself if there is none. Rows sum to 1; entries may
    be negative. Weights outside the grid's ranges are clipped to them. At a grid point it is that point
    itself.
    """
    low = [weight.minimum for weight in surface.controlled]
    high = [weight.maximum for weight in surface.controlled]
    weights_TW = np.clip(np.atleast_2d(np.asarray(weights_TW, dtype=np.float64)), low, high)
    out_TA = np.stack([surface.mixture(weights) for weights in weights_TW])
    most_T = (out_TA**2).sum(axis=1)
    open_T = surface.action_indices(weights_TW) < 0
    for grid_AB, there_TB in _fits(surface, weights_TW):
        _, kept = _orthonormal(grid_AB)  # a small grid cannot tell all functions apart: the simplest are used
        fitted_TA = there_TB[:, kept] @ np.linalg.pinv(grid_AB[:, kept])
        good_T = open_T & ((fitted_TA**2).sum(axis=1) <= most_T)
        out_TA[good_T] = fitted_TA[good_T]
        open_T &= ~good_T
    return out_TA


def _fits(surface: Surface, weights_TW: FloatArray) -> Iterator[tuple[FloatArray, FloatArray]]:
    """Functions on the grid [A, B] and at other weights [T, B], from the highest degree to the lowest."""
    if any(weight.minimum <= 0 for weight in surface.controlled):
        grid_AW, there_TW = surface.normalized_actions, surface.normalize(weights_TW)
        for degree in range(DEGREE, 1, -1):
            powers = _powers([min(degree, weight.points - 1) + 1 for weight in surface.controlled], degree)
            yield _products(2.0 * grid_AW - 1.0, powers), _products(2.0 * there_TW - 1.0, powers)
        return
    for degree in range(BETWEEN_RATIO_DEGREE, LEAST_RATIO_DEGREE - 1, -1):
        powers = _utility_powers(surface, degree, SCALE_DEGREE)
        yield (
            _utility_columns(surface, surface.actions, powers),
            _utility_columns(surface, weights_TW, powers),
        )


def _utility_powers(surface: Surface, degree: int, scale_degree: int) -> list[tuple[int, ...]]:
    """Exponents of the coordinates of :func:`_utility_columns`, the constant first."""
    ratios = max(len(surface.controlled) - 1, 1)
    scales = scale_degree if len(surface.controlled) > 1 else 0
    powers = itertools.product(*[range(degree + 1)] * ratios, range(scales + 1))
    kept = [p for p in powers if sum(p[:-1]) * max(scales, 1) + p[-1] * degree <= degree * max(scales, 1)]
    return sorted(kept, key=lambda p: (sum(p), p))


def _utility_order(power: tuple[int, ...]) -> int:
    """Total degree in the ratios, and what the power of 1 / g counts."""
    *ratios, scale = power
    return sum(ratios) + (SCALE_ORDER + NEXT_SCALE_ORDER * (scale - 1) if scale else 0)


def _utility_columns(surface: Surface, weights_TW: FloatArray, powers: list[tuple[int, ...]]) -> FloatArray:
    """The functions before they are made orthonormal, at any weights, [T, B]."""

    def coordinates(weights: FloatArray) -> FloatArray:
        log_TW = np.log(weights)
        ratio_TJ = log_TW[:, 1:] - log_TW[:, :1] if log_TW.shape[1] > 1 else log_TW
        return np.concatenate([ratio_TJ, np.exp(-log_TW.mean(axis=1, keepdims=True))], axis=1)

    grid_AX = coordinates(surface.actions)
    low, high = grid_AX.min(axis=0), grid_AX.max(axis=0)
    return _products(2.0 * (coordinates(weights_TW) - low) / (high - low) - 1.0, powers)


def _products(x_TX: FloatArray, powers: list[tuple[int, ...]]) -> FloatArray:
    """Products of Chebyshev polynomials of the coordinates, [T, B]."""
    highest = max(max(p) for p in powers)
    value_TXD = np.polynomial.chebyshev.chebvander(x_TX, highest)  # type: ignore[no-untyped-call]
    axes = np.arange(x_TX.shape[1])
    return np.stack([np.prod(value_TXD[:, axes, np.array(p)], axis=1) for p in powers], axis=1)


def polynomial_basis(surface: Surface, degree: int = DEGREE) -> ActionBasis:
    """Products of polynomials of the weights up to a total degree; a weight of K points goes up to K - 1."""
    if degree < 0:
        raise ValueError(f"degree must be at least 0, got {degree}")
    axes = [_polynomials(weight.points, degree) for weight in surface.controlled]
    wanted = _powers([axis.shape[1] for axis in axes], degree)
    columns = []
    for power in wanted:
        column = np.ones(1)
        for axis, d in zip(axes, power, strict=True):
            column = np.kron(column, axis[:, d])
        columns.append(column)
    return ActionBasis(
        np.stack(columns, axis=1),
        np.array([sum(power) for power in wanted]),
        f"{len(wanted)} polynomials of the weights up to degree {degree}",
    )


def _powers(sizes: list[int], degree: int) -> list[tuple[int, ...]]:
    """Exponents below the sizes with a sum up to the degree, the constant first."""
    powers = itertools.product(*(range(size) for size in sizes))
    return sorted((p for p in powers if sum(p) <= degree), key=lambda p: (sum(p), p))


def _polynomials(points: int, degree: int) -> FloatArray:
    """Orthonormal polynomials over K equally spaced points, [K, degree + 1]."""
    powers = np.vander(np.linspace(-1.0, 1.0, points), min(degree, points - 1) + 1, increasing=True)
    return np.asarray(_orthonormal(powers)[0] * np.sqrt(points))


def _orthonormal(columns: FloatArray) -> tuple[FloatArray, list[int]]:
    """Gram-Schmidt from left to right, and which columns added something."""
    kept: list[FloatArray] = []
    index = []
    for number, column in enumerate(columns.T):
        rest = column.copy()
        for _ in range(2):  # twice is enough
            for other in kept:
                rest -= (other @ rest) * other
        norm = np.linalg.norm(rest)
        if norm > 1e-8 * np.linalg.norm(column):
            kept.append(rest / norm)
            index.append(number)
    return np.stack(kept, axis=1), index
