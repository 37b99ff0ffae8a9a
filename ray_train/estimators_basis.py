"""Functions on the grid of weights: what estimators that share strength over it are made of.

A basis is B functions φ_b of the action, orthonormal over the grid, ``(1/A) Σ_a φ_b(a) φ_c(a) = 1{b = c}``,
the constant first. A function f on the grid has the coefficients ``(1/A) Σ_a f(a) φ_b(a)``, and the best
approximation of its kind is what they make. Two kinds:

* *ratios*: polynomials of the logarithms of the weights' ratios. The utility is linear in the weights
  (Eq. 1), so a ranking does not change when all of them grow by one factor: as far as the controlled heads
  make up the utility (almost 90 % of it in the paper, Eq. 11), only their ratios matter.
* *polynomials* of the min-max normalised weights (Eq. 6): no such assumption, more functions for as good an
  approximation.

Shape legend: A actions, B basis functions, n states, M objectives, K points of one weight, W weights.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from triton_models.surface import Surface

FloatArray = npt.NDArray[np.float64]

DEGREE = 4
"""Total degree of a polynomial basis."""
RATIO_DEGREE = 6
"""Total degree of a ratio basis; chosen by measurement (benchmarks/RESULTS.md)."""


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

    def coefficients(self, values_nAM: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """``(1/A) Σ_a f(a) φ_b(a)`` of functions given on the grid, [n, M, B]."""
        phi_AB = (self.values_AB / len(self.values_AB)).astype(np.float32)
        return np.asarray(np.swapaxes(values_nAM, 1, 2).astype(np.float32) @ phi_AB)


def ratio_basis(surface: Surface, degree: int = RATIO_DEGREE) -> ActionBasis:
    """Polynomials up to a total degree in ``log(w_j / w_1)``, j = 2..W; in ``log w_1`` where W = 1.

    Weights that may be 0 or less have no logarithm: then it is :func:`polynomial_basis`.
    """
    if any(weight.minimum <= 0 for weight in surface.controlled):
        return polynomial_basis(surface)
    log_AW = np.log(surface.actions)
    ratio_AJ = log_AW[:, 1:] - log_AW[:, :1] if log_AW.shape[1] > 1 else log_AW
    low, high = ratio_AJ.min(axis=0), ratio_AJ.max(axis=0)
    x_AJ = 2.0 * (ratio_AJ - low) / (high - low) - 1.0
    powers = _powers([degree + 1] * x_AJ.shape[1], degree)
    columns = np.stack([np.prod(x_AJ ** np.array(p), axis=1) for p in powers], axis=1)
    values_AB, kept = _orthonormal(columns)
    return ActionBasis(
        values_AB * np.sqrt(len(values_AB)),
        np.array([sum(powers[b]) for b in kept]),
        f"{len(kept)} polynomials of the weights' log ratios up to degree {degree}",
    )


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
