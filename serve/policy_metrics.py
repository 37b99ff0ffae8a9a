"""What Prometheus sees of policies. Arms are few (``serve.policy.MAX_ARMS``) and named by operators."""

from __future__ import annotations

from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge

from serve.policy import Policy

LIMITS = ("error_share", "fallback_share", "added_p99_ms", "metric")


class PolicyMetrics:
    """Version in force, arms, exploration, the store, the guardrails."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, text: str, mode: Literal["livemin", "livemax"]) -> Gauge:
            return Gauge(name, text, registry=registry, multiprocess_mode=mode)

        text = "Version of the policy in force; the {} of the node's replicas"
        self._newest = gauge("puts_policy_version", text.format("newest"), "livemax")
        self._oldest = gauge("puts_policy_version_oldest", text.format("oldest"), "livemin")
        self._exploration = gauge(
            "puts_exploration_share", "Share of the requests that the policy lets explore", "livemax"
        )
        self._store = gauge(
            "puts_policy_store_up", "1: every replica is in step with the store, or there is none", "livemin"
        )
        self._store.set(1)
        self._store_errors = Counter(
            "puts_policy_store_errors_total", "Polls that found the store not usable", registry=registry
        )
        changes = Counter(
            "puts_policy_changes_total", "Changes made through this sidecar", ["kind"], registry=registry
        )
        self._changes = {kind: changes.labels(kind) for kind in ("apply", "rollback")}
        guardrails = Counter(
            "puts_guardrail_rollbacks_total",
            "Ramps that the sidecar ended by itself, by the limit that was crossed",
            ["limit"],
            registry=registry,
        )
        self._guardrails = {limit: guardrails.labels(limit) for limit in LIMITS}
        self._arms = Counter("puts_arm_requests_total", "Requests by arm", ["arm"], registry=registry)
        explorations = Counter(
            "puts_explorations_total",
            "Requests drawn for exploration; capped: served their arm's choice instead",
            ["outcome"],
            registry=registry,
        )
        self._explored, self._capped = explorations.labels("explored"), explorations.labels("capped")

    def set_policy(self, policy: Policy) -> None:
        """Record the policy in force."""
        self._newest.set(policy.version)
        self._oldest.set(policy.version)
        self._exploration.set(policy.exploration.share)

    def set_store(self, *, up: bool) -> None:
        """Record whether the store is usable."""
        self._store.set(float(up))

    def count_store_error(self) -> None:
        """Count a poll that found the store not usable."""
        self._store_errors.inc()

    def count_change(self, kind: Literal["apply", "rollback"]) -> None:
        """Count a change made here."""
        self._changes[kind].inc()

    def count_guardrail(self, limit: str) -> None:
        """Count a ramp ended here."""
        self._guardrails[limit].inc()

    def count_arm(self, arm: str) -> None:
        """Count a request of an arm."""
        self._arms.labels(arm).inc()

    def count_exploration(self, *, capped: bool) -> None:
        """Count a request that was drawn for exploration."""
        (self._capped if capped else self._explored).inc()
