"""What Prometheus sees of policies. Arms are few (``serve.policy.MAX_ARMS``) and named by operators."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge


class PolicyMetrics:
    """Version in force, arms, exploration."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._newest = Gauge(
            "puts_policy_version",
            "Version of the policy in force; the newest of the node's replicas",
            registry=registry,
            multiprocess_mode="livemax",
        )
        self._oldest = Gauge(
            "puts_policy_version_oldest",
            "Version of the policy in force; the oldest of the node's replicas",
            registry=registry,
            multiprocess_mode="livemin",
        )
        self._arms = Counter("puts_arm_requests_total", "Requests by arm", ["arm"], registry=registry)
        explorations = Counter(
            "puts_explorations_total",
            "Requests drawn for exploration; capped: served their arm's choice instead",
            ["outcome"],
            registry=registry,
        )
        self._explored, self._capped = explorations.labels("explored"), explorations.labels("capped")

    def set_version(self, version: int) -> None:
        """Record the version in force."""
        self._newest.set(version)
        self._oldest.set(version)

    def count_arm(self, arm: str) -> None:
        """Count a request of an arm."""
        self._arms.labels(arm).inc()

    def count_exploration(self, *, capped: bool) -> None:
        """Count a request that was drawn for exploration."""
        (self._capped if capped else self._explored).inc()
