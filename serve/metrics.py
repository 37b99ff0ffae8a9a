"""What Prometheus sees. With ``PROMETHEUS_MULTIPROC_DIR`` set before prometheus_client is imported, the
replicas of a node share their numbers through that folder, and ``/metrics`` of any of them is right.

Label values come from closed sets (legs, reasons, actions of the grid, routes, status codes that we send),
so cardinality does not grow with traffic.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client import multiprocess as prometheus_multiprocess

from serve.breaker import KIND_VALUES, Kind
from serve.decide import REASONS, Decision
from serve.policy_metrics import PolicyMetrics
from triton_models.surface import Surface

MULTIPROC_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

LEGS = ("ranker", "value_network", "added", "total")

BUCKETS_S = (
    *(0.0, 0.0005, 0.001, 0.0015, 0.002, 0.003, 0.004, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05),
    *(0.075, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0),
)

MAX_ACTION_LABELS = 256
"""A larger grid is counted under one label."""


class Metrics:
    """The sidecar's counters and histograms, in a registry of their own."""

    def __init__(self, surface: Surface) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        leg = Histogram(
            "puts_leg_seconds",
            "Time of each leg; added: waited for the value network after the ranker had answered",
            ["leg"],
            buckets=BUCKETS_S,
            registry=registry,
        )
        self._legs = {name: leg.labels(name) for name in LEGS}
        self._requests = Counter(
            "puts_requests_total", "Requests by route and HTTP status", ["route", "status"], registry=registry
        )
        fallback = Counter(
            "puts_fallbacks_total",
            "Answers with production weights, by reason",
            ["reason"],
            registry=registry,
        )
        self._fallbacks = {reason: fallback.labels(reason) for reason in REASONS}
        action = Counter("puts_actions_total", "Actions chosen", ["action"], registry=registry)
        labels = range(surface.num_actions) if surface.num_actions <= MAX_ACTION_LABELS else ()
        self._actions = {number: action.labels(str(number)) for number in labels}
        self._any_action = action.labels("grid") if not labels else None
        self.in_flight = Gauge(
            "puts_in_flight",
            "Questions in flight, late ones included; several to the value network may share a call",
            ["upstream"],
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.late = Counter(
            "puts_late_answers_total",
            "Calls that ended after nobody waited for them any more",
            ["upstream", "outcome"],
            registry=registry,
        )
        self._value_calls = Counter(
            "puts_value_network_calls_total",
            "Calls to the value network on behalf of requests; several requests may share one",
            registry=registry,
        )
        self._value_rows = Counter(
            "puts_value_network_rows_total",
            "States asked about in these calls: divided by the calls, how many requests share one",
            registry=registry,
        )
        self.ranker_retries = Counter(
            "puts_ranker_retries_total",
            "Rankings asked of another server because the first could not be reached",
            registry=registry,
        )
        self._link = Gauge(
            "puts_value_network_up",
            "1: its surface was read and fits; 0: nobody answers; -1: it has another surface",
            ["address"],
            registry=registry,
            multiprocess_mode="livemin",
        )
        self._breaker = Gauge(
            "puts_breaker_state",
            "Circuit breaker of a server, the worst of all replicas. 0: closed; 1: half open; 2: open",
            ["upstream", "address"],
            registry=registry,
            multiprocess_mode="livemax",
        )
        self._breaker_turns = Counter(
            "puts_breaker_turns_total",
            "Circuit breakers that opened, half opened or closed",
            ["upstream", "address", "to"],
            registry=registry,
        )

        self.policy = PolicyMetrics(registry)

    def observe(self, leg: str, seconds: float) -> None:
        """Add one time to a leg."""
        self._legs[leg].observe(seconds)

    def count_request(self, route: str, status: int) -> None:
        """Count an answer."""
        self._requests.labels(route, str(status)).inc()

    def count_decision(self, decision: Decision) -> None:
        """Count an action that the value network chose, or a fallback."""
        if decision.reason is not None:
            self._fallbacks[decision.reason].inc()
        elif decision.source == "value_network" and decision.action is not None:
            (self._any_action or self._actions[decision.action]).inc()

    def count_value_call(self, rows: int) -> None:
        """Count a call to the value network."""
        self._value_calls.inc()
        self._value_rows.inc(rows)

    def set_link(self, address: str, value: int) -> None:
        """Record what is known of a value-network server."""
        self._link.labels(address).set(value)

    def set_breaker(self, upstream: str, address: str, kind: Kind) -> None:
        """Record the state of a breaker."""
        self._breaker.labels(upstream, address).set(KIND_VALUES[kind])

    def count_breaker_turn(self, upstream: str, address: str, kind: Kind) -> None:
        """Record that a breaker has turned."""
        self._breaker_turns.labels(upstream, address, kind).inc()
        self.set_breaker(upstream, address, kind)

    def exposition(self) -> bytes:
        """The Prometheus text of this process, or of all replicas of the node in multiprocess mode."""
        folder = os.environ.get(MULTIPROC_VARIABLE)
        if not folder:
            return generate_latest(self.registry)
        _forget_dead_processes(Path(folder))
        registry = CollectorRegistry()
        prometheus_multiprocess.MultiProcessCollector(registry, path=folder)  # type: ignore[no-untyped-call]
        return generate_latest(registry)


def _forget_dead_processes(folder: Path) -> None:
    """Remove the live gauges of replicas that are gone; their counters stay, as counters must."""
    for file in folder.glob("gauge_live*_*.db"):
        match = re.search(r"_(\d+)\.db$", file.name)
        if match and not Path(f"/proc/{match[1]}").exists():
            file.unlink(missing_ok=True)
