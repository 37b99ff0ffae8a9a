"""Static weight vectors as policies that exploration logs can value.

Production weights (91.6, 9.1 in the paper) are not a grid point, so no logged action equals them.
Decision (``smooth``): they are valued by *interpolation*, the smooth curve through all grid points' values
read off at production (:func:`ray_train.estimators_basis.interpolation`), an average of the grid points with
weights that sum to one. The alternatives: ``mixture``, the multilinear mixture of the corners of the
surrounding grid cell, the randomised policy whose mean weight vector is production's; and ``nearest``, the
nearest grid point alone. Coarse grids are valued by the mixture in any case. Where the reward bends inside
one cell a mixture is off by that (up to 9 points of lift on a coarse grid, benchmarks/RESULTS.md), and it
uses the rows of 2^W grid points only.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from ray_train.estimators import ActionMixture
from ray_train.estimators_basis import interpolation
from triton_models.surface import Surface

Valuation = Literal["smooth", "mixture", "nearest"]


def static_policy(surface: Surface, weights: npt.ArrayLike) -> ActionMixture:
    """Any weight vector [W], valued by interpolation between the grid points; clipped to the grid."""
    return ActionMixture(interpolation(surface, weights)[0])


def static_mixture(surface: Surface, weights: npt.ArrayLike) -> ActionMixture:
    """The mixture of grid corners whose mean weight vector is ``weights`` [W], clipped to the grid.

    Value: ``V(w) ≈ Σ_c b_c(w) V(corner c)`` with the multilinear coordinates ``b_c`` of w in its cell.
    """
    return ActionMixture(surface.mixture(weights))


def production_policy(surface: Surface, valuation: Valuation) -> ActionMixture:
    """Production as a policy over grid actions."""
    if valuation == "smooth":
        return static_policy(surface, surface.production)
    if valuation == "mixture":
        return ActionMixture(surface.production_mixture())
    nearest_A = np.zeros(surface.num_actions)
    nearest_A[surface.nearest_production_action] = 1.0
    return ActionMixture(nearest_A)


def production_note(surface: Surface, valuation: Valuation) -> str:
    """How production was valued, as one sentence for the report."""
    weights = _describe(surface, surface.production)
    nearest = surface.actions[surface.nearest_production_action]
    if surface.action_indices(surface.production[None])[0] >= 0:
        return f"The production weights ({weights}) are a grid point; its logged rows value production."
    if valuation == "nearest":
        return (
            f"The production weights ({weights}) are no grid point; production is valued by the nearest "
            f"one ({_describe(surface, nearest)}), which is a slightly different policy."
        )
    smooth_A = production_policy(surface, "smooth").probability_A
    if valuation == "smooth" and not np.array_equal(smooth_A, surface.production_mixture()):
        return (
            f"The production weights ({weights}) are no grid point, so no logged action equals them; "
            "production is valued by interpolation: a smooth curve through the values of all grid points, "
            "read off at production."
        )
    corners = int(np.count_nonzero(surface.production_mixture()))
    return (
        f"The production weights ({weights}) are no grid point, so no logged action equals them; production "
        f"is valued as the mixture of the {corners} surrounding grid points whose mean weights are "
        "production's (exact up to the curvature of the reward inside one grid cell)."
    )


def _describe(surface: Surface, weights: npt.NDArray[np.float64]) -> str:
    pairs = zip(surface.controlled_heads, weights, strict=True)
    return ", ".join(f"{head} {weight:.4g}" for head, weight in pairs)
