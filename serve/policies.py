"""What is in force in one replica: a snapshot of the policy, swapped whole, and the exploration cap.

Each request is assigned from the snapshot that it finds; a change meanwhile is for the next request.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from serve.assignment import EMPTY, Assignment, CompiledPolicy, assign, configured_policy, take
from serve.config import SidecarConfig
from serve.decide import Decision, OperatingPoint
from serve.guardrails import RampWatch
from serve.metrics import Metrics
from serve.policy import Activation, Policy
from serve.requests import WeightsRequest
from triton_models.surface import Surface

Now = Callable[[], float]
"""Unix time in seconds: replicas on several machines must agree on a ramp, so not a monotonic clock."""


CONFIGURED = Activation(sequence=0, version=0, at=0.0, author="configuration", reason="")
"""What is in force before the first activation: the sidecar's own configuration."""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A policy in force since an activation. Immutable."""

    compiled: CompiledPolicy
    activation: Activation

    @property
    def policy(self) -> Policy:
        """The policy."""
        return self.compiled.policy

    def elapsed_s(self, now_s: float) -> float:
        """Where the policy's ramp stands; never negative, whatever clocks do."""
        return max(0.0, now_s - self.activation.at) + self.activation.ramp_offset_s


class Policies:
    """The policy in force in this replica."""

    def __init__(
        self, config: SidecarConfig, point: OperatingPoint, metrics: Metrics, *, now: Now = time.time
    ) -> None:
        self._surface: Surface = config.surface
        self.metrics = metrics.policy
        self.watch = RampWatch()
        self._now = now
        self._bucket = EMPTY
        self._replicas = config.num_replicas
        # Swaps come from the store's thread, configured values from Ray Serve's: one must not undo the other.
        self._lock = threading.RLock()
        self.configured = self._compile_point(point)
        self.swap(Snapshot(compiled=self.configured, activation=CONFIGURED))

    def _compile_point(self, point: OperatingPoint) -> CompiledPolicy:
        return CompiledPolicy(self._surface, configured_policy(self._surface, point.scalarization_M))

    def configure(self, point: OperatingPoint) -> None:
        """New configured values: they are version 0, in force as long as nothing else is."""
        configured = self._compile_point(point)
        with self._lock:
            self.configured = configured
            if self.snapshot.policy.version == 0:
                self.swap(Snapshot(compiled=configured, activation=self.snapshot.activation))

    def swap(self, snapshot: Snapshot) -> None:
        """Put another policy in force, whole."""
        with self._lock:
            if snapshot.policy.version == 0:  # made before the configuration changed, perhaps
                snapshot = Snapshot(compiled=self.configured, activation=snapshot.activation)
            self.watch.begin(snapshot.policy)
            self.snapshot: Snapshot = snapshot
            self.metrics.set_policy(snapshot.policy)

    def assign(self, request: WeightsRequest, *, explorable: bool) -> Assignment:
        """What a request gets.

        Args:
            explorable: Whether an explored action would be served and could be learned from.
        """
        snapshot = self.snapshot
        compiled = snapshot.compiled
        wanted = explorable and compiled.wants_exploration(
            request_id=request.request_id, user_id=request.user_id, placement=request.placement
        )
        explores, self._bucket = take(
            snapshot.policy.exploration, self._bucket, wanted=wanted, replicas=self._replicas
        )
        if wanted:
            self.metrics.count_exploration(capped=not explores)
        assigned = assign(
            compiled,
            elapsed_s=snapshot.elapsed_s(self._now()),
            user_id=request.user_id,
            request_id=request.request_id,
            cohort=request.cohort,
            explores=explores,
        )
        self.metrics.count_arm(assigned.arm)
        return assigned

    def record(self, assigned: Assignment, decision: Decision, *, added_s: float = 0.0) -> None:
        """Take note of how a request went: what the ramp is watched by."""
        self.watch.record(self._now(), assigned, decision, added_s=added_s)

    def record_failure(self, assigned: Assignment) -> None:
        """Take note of a request that got no ranking."""
        self.watch.record(self._now(), assigned, None)
