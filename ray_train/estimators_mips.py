"""MIPS: importance weights of cells of the weight grid instead of single grid points.

Saito & Joachims, *Off-Policy Evaluation for Large Action Spaces via Embeddings* (ICML 2022)::

    V̂(π) = (1/N) Σ_i w(s_i, e_i) r_i,    w(s, e) = p(e|s, π) / p(e|s, π_0),   p(e|s, π) = Σ_{a ∈ e} π(a|s)

The embedding e of an action is the coarse cell of the grid that it lies in. Unbiased where the action matters
through its cell only ("no direct effect"); otherwise the policy's action is valued as the average of its cell
under the logging policy, and that is its bias. ``E[w²]`` counts cells instead of actions.

A log holds the logging policy's propensity of the logged action, not of the whole cell:
``p(e_i|s_i, π_0) = p_i / ρ(a_i|e_i)``, with ρ the logging policy's distribution inside a cell. It is 1 / |e|
where logging is uniform, and otherwise read off from how often each action occurs, which assumes that ρ does
not depend on the request (the propensities of whole cells may).

Shape legend: N rows, A actions, E cells.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import numpy.typing as npt

from ray_train.estimators import FloatArray, InversePropensity, LoggedRows, Policy, logging_is_uniform
from triton_models.surface import Surface

CELL_POINTS = 2
"""Grid points of every controlled weight in a cell."""


class MarginalizedIPS(InversePropensity):
    """The module's estimator for any cells."""

    name: ClassVar[str] = "mips"
    formula: ClassVar[str] = (
        "MIPS: mean of w r with w = p(e|s, π) / p(e|s, π0), e the action's cell of the grid (bias in cells)"
    )

    def __init__(self, cell_A: npt.NDArray[np.intp], inside_A: FloatArray) -> None:
        """``cell_A`` numbers the cells; ``inside_A`` is ρ(a|e), which sums to 1 in every cell."""
        if not np.allclose(np.bincount(cell_A, weights=inside_A), 1.0):
            raise ValueError("the distribution inside a cell must sum to 1")
        self.cell_A, self.inside_A = cell_A, inside_A
        self._same_AA = np.equal.outer(cell_A, cell_A).astype(np.float64)

    def weights(self, rows: LoggedRows, policy: Policy) -> FloatArray:
        """``Σ_{a ∈ e_i} π(a|s_i) ρ(a_i|e_i) / p_i``."""
        return policy.pick(self._same_AA, rows) * self.inside_A[rows.action_N] / rows.propensity_N


def grid_cells(surface: Surface, points: int = CELL_POINTS) -> npt.NDArray[np.intp]:
    """Cell number of every action: ``points`` neighbouring values of each weight together, [A]."""
    if points < 1:
        raise ValueError(f"a cell has at least 1 point of a weight, got {points}")
    number = np.zeros(1, dtype=np.intp)
    for weight in surface.controlled:
        cells = -(-weight.points // points)
        number = np.add.outer(number * cells, np.arange(weight.points) // points).ravel()
    return number


def inside_cells(cell_A: npt.NDArray[np.intp], rows: LoggedRows, num_actions: int) -> FloatArray:
    """ρ(a|e) of the logging policy: uniform if the propensities are, else the logged actions' shares, [A]."""
    count_A = np.ones(num_actions)
    if not logging_is_uniform(rows.propensity_N, num_actions):
        count_A = np.maximum(np.bincount(rows.action_N, minlength=num_actions).astype(np.float64), 1e-9)
    return np.asarray(count_A / np.bincount(cell_A, weights=count_A)[cell_A])
