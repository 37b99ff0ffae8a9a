"""Static weight vectors as policies that exploration logs can value.

Production weights (91.6, 9.1 in the paper) are not a grid point, so no logged action equals them.
Decision: they are valued as the *multilinear mixture* of the corners of the surrounding grid cell, the
randomised policy whose mean weight vector is production's. Its value equals production's up to the
curvature of the reward inside one cell, and it uses up to 2^W grid points' worth of rows, so it is both
less biased and less noisy than the nearest grid point alone, which is the alternative.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from ray_train.estimators import ActionMixture
from triton_models.surface import Surface

Valuation = Literal["mixture", "nearest"]


def static_mixture(surface: Surface, weights: npt.ArrayLike) -> ActionMixture:
    """The mixture of grid corners whose mean weight vector is ``weights`` [W], clipped to the grid.

    Value: ``V(w) ≈ Σ_c b_c(w) V(corner c)`` with the multilinear coordinates ``b_c`` of w in its cell.
    """
    return ActionMixture(surface.mixture(weights))


def production_policy(surface: Surface, valuation: Valuation) -> ActionMixture:
    """Production as a policy over grid actions."""
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
    corners = int(np.count_nonzero(surface.production_mixture()))
    return (
        f"The production weights ({weights}) are no grid point, so no logged action equals them; production "
        f"is valued as the mixture of the {corners} surrounding grid points whose mean weights are "
        "production's (exact up to the curvature of the reward inside one grid cell)."
    )


def _describe(surface: Surface, weights: npt.NDArray[np.float64]) -> str:
    pairs = zip(surface.controlled_heads, weights, strict=True)
    return ", ".join(f"{head} {weight:.4g}" for head, weight in pairs)
