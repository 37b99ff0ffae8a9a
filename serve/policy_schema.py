"""Answers of the policy routes, for OpenAPI and tests."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from serve.policy import Policy


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Numbered(Policy):
    """A policy, whole; ``excluded.users`` is for those who may change it."""

    excluded_users: int
    """How many users never explore."""


class Summary(_Answer):
    """A policy without its body."""

    version: int
    surface_fingerprint: str
    frontier_fingerprint: str | None
    author: str
    reason: str
    created_at: float
    """Unix time in seconds."""


class Accepted(_Answer):
    """An activation: from then on this version was in force."""

    sequence: int
    version: int
    at: float
    """Unix time in seconds."""
    author: str
    reason: str
    ramp_offset_s: float
    """How far the policy's ramp had come already, when it was in force before."""


class PolicyList(_Answer):
    """Policies and activations, newest first."""

    policies: list[Summary]
    activations: list[Accepted]


class RampState(_Answer):
    """Where a ramp stands."""

    arm: str
    share: float
    step: int
    steps: int
    next_in_s: float | None
    watched: dict[str, Any] | None
    """The ramped arm's traffic in the guardrails' window, of all replicas that this one has heard of."""


class StoreState(_Answer):
    """What this replica knows of the store."""

    version: int
    sequence: int
    store: Literal["none", "up", "down", "behind", "unusable"]
    detail: str


class InForceAnswer(_Answer):
    """The policy in force in the replica that answers."""

    version: int
    sequence: int
    activated_at: float
    activated_by: str
    activation_reason: str
    shares: dict[str, float]
    """Each arm's share of the users, now."""
    ramp: RampState | None
    control: bool
    """False: production weights for everybody, by the sidecar's configuration."""
    store: StoreState
    drift: str | None
    """What to do about drift, if anything; ``/v1/drift`` says more."""
    policy: Policy
    """Whole, but for ``excluded.users``, which is for those who may change it."""
    excluded_users: int
    """How many users never explore."""


class Reported(_Answer):
    """What a reported metric led to."""

    policy_version: int
    """In force now."""
    rolled_back: bool
    reason: str | None
