"""Who gets what of an operating policy (:mod:`serve.policy`). Pure: no clock, no store, no HTTP.

All draws are hashes, so every replica makes the same one and a restart changes nothing. With ``h`` the
64-bit BLAKE2b hash of (salt, purpose, id), read as a number ``u = h / 2^64`` in [0, 1):

* ramped arm: ``u_ramp(user) < share(t)``, ``t`` the seconds since activation: who is in at 1 % stays in;
* other arms: ``u_arm(user)`` against the cumulated shares of the arms that are left, independent of the
  ramp, so that a ramp moves users only into the ramped arm;
* exploration: ``u_explore(request) < share``, then ``u_action(request)`` against the cumulated distribution.

Shape legend: A actions, M objectives.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from itertools import accumulate

from serve.policy import (
    Arm,
    Exploration,
    Kind,
    Policy,
)
from triton_models.surface import FloatArray, Surface

SCALE = 2**64
"""Hashes are whole numbers below this."""


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """What one request gets."""

    arm: str
    kind: Kind
    scalarization_M: FloatArray | None
    """λ of the arm and cohort; None: they get production weights."""
    policy_version: int
    action: int | None = None
    propensity: float | None = None
    """Probability of ``action`` given that the request explores."""
    ramped: bool = False
    """Whether the arm is the one whose share grows."""
    frontier_fingerprint: str | None = None
    """The reviewed frontier that the policy's scalarizations come from."""


@dataclass(frozen=True)
class Bucket:
    """Tokens of the exploration cap in millionths, so that nothing is lost in rounding."""

    tokens: int


MICRO = 1_000_000


EMPTY = Bucket(0)
"""The bucket at the start: a replica that is restarted over and over explores no more for it."""


def take(exploration: Exploration, bucket: Bucket, *, wanted: bool, replicas: int = 1) -> tuple[bool, Bucket]:
    """Count one request of one of ``replicas``; whether it may explore, and the bucket after it.

    Each request adds ``cap`` tokens up to ``b = max(1, burst / R)``, each exploration takes one. Hence of any
    ``n_i`` requests in a row of replica i at most ``b + cap n_i`` explore, wherever the window lies, and of
    any ``n = Σ n_i`` of all R replicas at most ``R b + cap n = max(R, burst) + cap n``. A replica that takes
    another one's place begins with none (:data:`EMPTY`), so the bound outlives restarts.

    R is what a replica was started with. A rolling upgrade has old and new replicas at work together, which
    do not know of each other: over windows that lie in it the first term is up to ``2 max(R, burst)``, for
    the old ones' saved tokens and the new ones'. The rate, ``cap n``, holds throughout: each request counts
    once.
    """
    most = max(MICRO, exploration.burst * MICRO // replicas)
    tokens = min(most, bucket.tokens + math.floor(exploration.cap * MICRO))
    if wanted and tokens >= MICRO:
        return True, Bucket(tokens - MICRO)
    return False, Bucket(tokens)


def _keyed(key: bytes, name: str) -> int:
    """64-bit hash of a name; draws under different keys are independent."""
    digest = blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8, key=key).digest()
    return int.from_bytes(digest, "big")


def _key(salt: str, purpose: str) -> bytes:
    return blake2b(f"{purpose}\0{salt}".encode("utf-8", "surrogatepass"), digest_size=32).digest()


class CompiledPolicy:
    """A policy with its tables made: what a request is assigned by. Immutable."""

    def __init__(self, surface: Surface, policy: Policy) -> None:
        policy.check_surface(surface)
        self.policy = policy
        self._surface = surface
        self._others = policy.others
        self._bounds = [bound * SCALE for bound in accumulate(arm.share for arm in self._others)]
        self._ramped = next((a for a in policy.arms if policy.ramp and a.name == policy.ramp.arm), None)
        self._keys = {name: _key(policy.salt, name) for name in ("ramp", "arm", "explore", "action")}
        self._explore_below = math.floor(policy.exploration.share * SCALE)
        self._lambda: dict[tuple[str, str | None], FloatArray | None] = {}
        for arm in policy.arms:
            for cohort in (None, *arm.cohorts):
                choice = arm.choice_of(cohort)
                self._lambda[arm.name, cohort] = (
                    None if isinstance(choice, str) else surface.scalarization(choice)
                )

    @cached_property
    def propensities_A(self) -> tuple[float, ...]:
        """Probability of each action, given that a request explores."""
        given = self.policy.exploration.distribution
        if given == "uniform":
            return (1.0 / self._surface.num_actions,) * self._surface.num_actions
        total = math.fsum(given)
        return tuple(chance / total for chance in given)

    @cached_property
    def _action_bounds(self) -> list[float]:
        return [bound * SCALE for bound in accumulate(self.propensities_A)]

    def arm_of(self, unit: str, *, elapsed_s: float) -> Arm:
        """The arm of a user after ``elapsed_s``."""
        ramp = self.policy.ramp
        if ramp is not None and self._ramped is not None:
            below = ramp.share(elapsed_s) * SCALE
            if not self._others or _keyed(self._keys["ramp"], unit) < below:
                return self._ramped
        if len(self._others) == 1:
            return self._others[0]
        drawn = _keyed(self._keys["arm"], unit) / SCALE * self._bounds[-1]
        return self._others[min(bisect_right(self._bounds, drawn), len(self._others) - 1)]

    def wants_exploration(self, *, request_id: str, user_id: str | None, placement: str | None) -> bool:
        """Whether the request would explore if the cap lets it; never one that is excluded."""
        if not self._explore_below or _keyed(self._keys["explore"], request_id) >= self._explore_below:
            return False
        excluded = self.policy.excluded
        return user_id not in excluded.users and placement not in excluded.placements

    def draw(self, request_id: str) -> tuple[int, float]:
        """The explored action of a request, and its propensity."""
        drawn = _keyed(self._keys["action"], request_id) / SCALE * self._action_bounds[-1]
        action = min(bisect_right(self._action_bounds, drawn), len(self.propensities_A) - 1)
        while self.propensities_A[action] == 0.0:  # rounding at the upper end
            action -= 1
        return action, self.propensities_A[action]


def assign(
    compiled: CompiledPolicy,
    *,
    elapsed_s: float,
    user_id: str | None,
    request_id: str,
    cohort: str | None,
    explores: bool,
) -> Assignment:
    """What a request gets: its arm by its user, and an action of its own if it explores.

    Args:
        elapsed_s: Seconds since the policy was activated; places the ramp.
        user_id: None: the request stands for itself, as a user who comes once.
        explores: :meth:`CompiledPolicy.wants_exploration`, after the cap (:func:`take`).
    """
    unit = user_id if user_id is not None else request_id
    arm = compiled.arm_of(unit, elapsed_s=elapsed_s)
    known = cohort if cohort in arm.cohorts else None
    scalarization_M = compiled._lambda[arm.name, known]
    kind: Kind = "exploration" if explores else "static" if scalarization_M is None else "scalarization"
    action, propensity = compiled.draw(request_id) if explores else (None, None)
    ramp = compiled.policy.ramp
    return Assignment(
        arm=arm.name,
        kind=kind,
        scalarization_M=scalarization_M,
        policy_version=compiled.policy.version,
        action=action,
        propensity=propensity,
        ramped=ramp is not None and ramp.arm == arm.name,
        frontier_fingerprint=compiled.policy.frontier_fingerprint,
    )


def configured_policy(surface: Surface, scalarization_M: FloatArray) -> Policy:
    """Version 0: what the sidecar's own configuration says, for everybody and without exploration."""
    values = tuple(scalarization_M.tolist())
    return Policy(
        version=0,
        arms=(Arm(name="default", choice=values),),
        author="configuration",
        reason="the sidecar's configuration",
        created_at=0.0,
        surface_fingerprint=surface.fingerprint,
    )
