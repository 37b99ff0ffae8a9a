"""What a policy means for drift: what its frontier promised, and the static one in its place. Pure."""

from __future__ import annotations

import numpy as np

from serve.drift import Promise
from serve.policy import STATIC, Arm, Policy, PolicyBody
from serve.policy_rules import SAME_POINT
from triton_models.frontier import Frontier, Point
from triton_models.surface import FloatArray


def promise_of(frontier: Frontier | None, lambda_M: FloatArray, cohort: str | None) -> Promise | None:
    """What a frontier says of λ for a cohort, else for everybody; None: nothing."""
    if frontier is None:
        return None
    surface = frontier.surface_object

    def is_it(point: Point) -> bool:
        mine_M = surface.scalarization(point.scalarization)
        return bool(np.abs(mine_M - lambda_M).max() <= SAME_POINT)

    explored = [p for p in frontier.points if p.cohort in (None, cohort) and not p.extrapolated]
    found = [p for p in explored if is_it(p)]
    point = min(found, key=lambda p: p.cohort is None, default=None)
    if point is None:
        return None
    values = [point.values[name] for name in surface.objectives]
    return Promise(
        weights_W=np.array([point.mean_weights[head] for head in surface.controlled_heads]),
        values_M=None if None in values else np.array(values, dtype=np.float64),
    )


def chooses(policy: PolicyBody) -> bool:
    """Whether anybody is served the value network's choice."""
    return any(choice != STATIC for arm in policy.arms for choice in (arm.choice, *arm.cohorts.values()))


def static_of(policy: Policy) -> PolicyBody:
    """Production weights for everybody; exploration as it was: the next run learns from it."""
    return PolicyBody(
        arms=(Arm(name=STATIC, choice=STATIC),),
        salt=policy.salt,
        exploration=policy.exploration,
        excluded=policy.excluded,
    )
