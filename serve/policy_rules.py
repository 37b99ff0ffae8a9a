"""Which policies may be applied: those whose scalarizations lie on the reviewed frontier. Pure."""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from serve.policy import STATIC, Number, Policy, PolicyBody, Text, parse
from triton_models.errors import FrontierError, PolicyError, SurfaceMismatchError
from triton_models.frontier import Frontier, Point, parse_frontier
from triton_models.surface import Surface

SAME_POINT = 1e-6
"""Largest difference between the entries of two λ on the simplex that are one operating point."""


class Change(BaseModel):
    """Body of ``POST /v1/policies``: a policy, why, and the frontier that its operating points are on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    policy: PolicyBody
    reason: Text
    author: Text | None = None
    """Who asks for it, where the token does not say."""
    frontier: dict[str, Any] | None = None
    """The reviewed frontier, as ``python -m ray_train sweep`` wrote it."""
    frontier_fingerprint: str | None = None
    """Or the fingerprint of one that the store has from an earlier policy."""
    surface_fingerprint: str | None = None
    """The surface that the policy is meant for; another one is refused."""
    force_reason: Text | None = None
    """Why a policy that is not on the frontier is applied all the same."""
    expected_sequence: Number | None = None
    """Number of the activation that the change was made for; another one meanwhile is a conflict."""


class Return(BaseModel):
    """Body of ``POST /v1/policy/rollback``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    reason: Text
    author: Text | None = None
    version: Number | None = None
    """Null: the policy before the one in force."""
    expected_sequence: Number | None = None


def read_frontier(data: object, surface: Surface) -> Frontier:
    """A frontier out of plain data, for this surface.

    Raises:
        PolicyError: it is damaged.
        SurfaceMismatchError: it was made for another surface.
    """
    try:
        frontier = parse_frontier(data, source="frontier")
    except FrontierError as error:
        raise PolicyError(str(error)) from error
    surface.require_same(frontier.surface_object, this="the sidecar", that="the frontier")
    return frontier


def review(
    change: Change,
    surface: Surface,
    frontier: Frontier | None,
    *,
    before: PolicyBody,
    author: str,
    at: float,
) -> Policy:
    """The policy that a change asks for, if it may be applied. Its number is still 0.

    Args:
        before: The policy in force; what it serves already may stay, as the arm to compare with.

    Raises:
        PolicyError: it does not fit the surface, or it is not on the frontier and nobody forces it.
        SurfaceMismatchError: it is meant for another surface.
    """
    if change.surface_fingerprint not in (None, surface.fingerprint):
        raise SurfaceMismatchError(
            f"the policy is meant for surface {change.surface_fingerprint}, the sidecar has "
            f"{surface.fingerprint}; use parts of one surface"
        )
    change.policy.check_surface(surface)
    problem = off_frontier(change.policy, surface, frontier, before=before)
    if problem is not None and change.force_reason is None:
        raise PolicyError(f"{problem}; apply a point of the reviewed frontier, or force it with a reason")
    reason = change.reason if problem is None else f"{change.reason} (forced: {change.force_reason})"
    data = change.policy.model_dump() | {
        "version": 0,
        "author": author,
        "reason": reason[:1000],
        "created_at": at,
        "surface_fingerprint": surface.fingerprint,
        "frontier_fingerprint": None if frontier is None else frontier.fingerprint,
        "forced": problem is not None,
    }
    return parse(Policy, data, source="policy")


def off_frontier(
    policy: PolicyBody, surface: Surface, frontier: Frontier | None, *, before: PolicyBody
) -> str | None:
    """Why a policy's operating points are not all on a frontier; None: they are.

    What ``before``, the policy in force, gives a cohort may stay. Else a cohort may have a point of its own
    frontier or of everybody's, and an arm's default one of everybody's.
    A point counts if no other dominates it, or if the frontier proposes it as a candidate. An extrapolated
    one never does: the served model does not choose those weights, and no log says what they do.
    """
    for arm in policy.arms:
        for cohort, choice in [(None, arm.choice), *arm.cohorts.items()]:
            if choice == STATIC or any(choice == kept.choice_of(cohort) for kept in before.arms):
                continue
            where = f"arm {arm.name}" + (f", cohort {cohort}" if cohort is not None else "")
            shown = ", ".join(f"{entry:g}" for entry in choice)
            if frontier is None:
                return f"{where}: scalarization ({shown}) comes with no frontier"
            wanted_M = surface.scalarization(choice)
            points = [point for point in _allowed(frontier) if point.cohort in (None, cohort)]
            found = any(
                np.abs(surface.scalarization(p.scalarization) - wanted_M).max() <= SAME_POINT for p in points
            )
            if not found:
                return f"{where}: scalarization ({shown}) is not a point of the frontier"
    return None


def _allowed(frontier: Frontier) -> list[Point]:
    proposed = {candidate.point for candidate in frontier.candidates.values()}
    return [
        p
        for index, p in enumerate(frontier.points)
        if not p.extrapolated and (not p.dominated or index in proposed)
    ]
