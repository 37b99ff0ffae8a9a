"""What is told of drift: to Prometheus, and over HTTP."""

from __future__ import annotations

from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge
from pydantic import BaseModel, ConfigDict

from serve.drift import Level


class DriftMetrics:
    """What Prometheus sees. ``what`` is a closed set: the surface's heads and objectives."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, text: str, mode: Literal["livemin", "livemax"], *labels: str) -> Gauge:
            return Gauge(name, text, labels, registry=registry, multiprocess_mode=mode)

        self.index = gauge(
            "puts_drift",
            "Difference from the reference (score:HEAD, a population stability index) or from the frontier "
            "(weight:HEAD, value:OBJECTIVE); the worst of the node's replicas",
            "livemax",
            "what",
        )
        self.level = gauge(
            "puts_drift_level", "0: as it was; 1: watch it; 2: use static weights or sweep again", "livemax"
        )
        self.reference = gauge(
            "puts_drift_reference", "1: scores are compared; 0: the reference is still collected", "livemin"
        )
        self.switches = Counter(
            "puts_drift_switches_total", "Static weights put in force by drift.on_limit", registry=registry
        )


class ReferenceState(BaseModel):
    """The reference that scores are compared with."""

    model_config = ConfigDict(extra="forbid")

    number: int
    frontier_fingerprint: str | None
    author: str
    made_at: float
    """Unix time in seconds at which collecting began."""
    complete: bool
    requests: int
    """Collected by this replica so far, or in the whole reference."""
    kept: bool
    """Whether a restart finds it again: there is a policy store."""


class DriftState(BaseModel):
    """What this replica knows of drift."""

    model_config = ConfigDict(extra="forbid")

    enabled: bool
    level: Level
    levels: dict[str, Level]
    indices: dict[str, float]
    """Of the window; empty until there are requests enough."""
    recommendation: str | None
    requests: int
    """Rankings looked at in the window."""
    reference: ReferenceState | None
