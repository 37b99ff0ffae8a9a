"""What the Grafana dashboard shows, row by row, as data; :mod:`serve.dashboard` lays it out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Unit = Literal["reqps", "cps", "s", "µs", "percentunit", "short", "bytes", "Bps"]
"""Grafana's names of units."""

Steps = tuple[tuple[str, float], ...]
"""Colour from this value on; below the first everything is green."""

ROUTES = 'route=~"rank|weights"'
SERVED, FAILED = 'status="200"', 'status=~"5.."'
ADDED, AT_MOST_1_MS = 'leg="added"', 'le="0.001"'
ASKED, NOT_ASKED = 'reason!="control_off"', 'reason="control_off"'
"""Switched off by the operator or the caller: no fault, and no request that could have fallen back."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One picture."""

    title: str
    text: str
    """What it shows, and what to think of it."""
    queries: tuple[tuple[str, str], ...]
    """PromQL and legend."""
    unit: Unit = "short"
    kind: Literal["timeseries", "stat"] = "timeseries"
    steps: Steps = ()
    stacked: bool = False
    width: int = 8


def of_jobs(metric: str, *matchers: str) -> str:
    """A metric of the chosen jobs."""
    job = "$triton" if metric.startswith("nv_") else "$job"
    chosen = ",".join((f'job=~"{job}"', *matchers))
    return f"{metric}{{{chosen}}}"


def _rate(metric: str, *matchers: str) -> str:
    return f"rate({of_jobs(metric, *matchers)}[$__rate_interval])"


def _sum(by: str, inner: str) -> str:
    return f"sum by ({by}) ({inner})" if by else f"sum({inner})"


def _quantile(share: float, leg: str) -> str:
    rate = _rate("puts_leg_seconds_bucket", f'leg="{leg}"')
    return f"histogram_quantile({share}, {_sum('le', rate)})"


def _quantiles(leg: str, name: str) -> tuple[tuple[str, str], ...]:
    return tuple((_quantile(share, leg), f"{name} p{share * 100:g}") for share in (0.5, 0.99))


def _a_request(metric: str) -> str:
    """A duration of Triton, per request."""
    requests = _sum("model", _rate("nv_inference_request_success"))
    return f"{_sum('model', _rate(metric))} / {requests}"


TRAFFIC = (
    Panel(
        title="Error share",
        text="Answers with 5xx. The value network cannot cause one: look at the ranker.",
        queries=(
            (
                f"({_sum('', _rate('puts_requests_total', FAILED))} or vector(0))"
                f" / {_sum('', _rate('puts_requests_total'))}",
                "5xx",
            ),
        ),
        unit="percentunit",
        kind="stat",
        steps=(("yellow", 0.001), ("red", 0.01)),
        width=4,
    ),
    Panel(
        title="Requests",
        text="By route.",
        queries=((_sum("route", _rate("puts_requests_total")), "{{route}}"),),
        unit="reqps",
        width=7,
    ),
    Panel(
        title="Answers by status",
        text="4xx are the callers' mistakes, 503 the ranker's.",
        queries=((_sum("status", _rate("puts_requests_total")), "{{status}}"),),
        unit="reqps",
        width=7,
    ),
    Panel(
        title="Questions in flight",
        text="Late ones included: nothing is cancelled, the cap on each server's calls is what ends a pile. "
        "Several questions to the value network may share a call.",
        queries=((_sum("upstream", of_jobs("puts_in_flight")), "{{upstream}}"),),
        width=6,
    ),
)

LATENCY = (
    Panel(
        title="Added latency",
        text="Waited for the value network after the ranker had answered: the price of control.",
        queries=_quantiles("added", "added"),
        unit="s",
        steps=(("yellow", 0.001), ("red", 0.005)),
    ),
    Panel(
        title="Whole request, inside the sidecar",
        text="From parsed body to answer.",
        queries=_quantiles("total", "total"),
        unit="s",
    ),
    Panel(
        title="Legs",
        text="Each call by itself, late ones included.",
        queries=(*_quantiles("ranker", "ranker"), *_quantiles("value_network", "value network")),
        unit="s",
    ),
    Panel(
        title="Requests that waited more than 1 ms",
        text="Share of rankings.",
        queries=(
            (
                f"1 - {_sum('', _rate('puts_leg_seconds_bucket', ADDED, AT_MOST_1_MS))}"
                f" / {_sum('', _rate('puts_leg_seconds_count', ADDED))}",
                "waited",
            ),
        ),
        unit="percentunit",
        kind="stat",
        steps=(("yellow", 0.01), ("red", 0.05)),
    ),
    Panel(
        title="Late calls and second tries",
        text="Ended after nobody waited for them any more; and rankings asked of another server because the "
        "first could not be reached.",
        queries=(
            (_sum("upstream, outcome", _rate("puts_late_answers_total")), "{{upstream}} late, {{outcome}}"),
            (_sum("", _rate("puts_ranker_retries_total")), "ranker asked again"),
        ),
        unit="cps",
    ),
    Panel(
        title="Calls to the value network",
        text="Requests that wait for a ranker anyway share a call: more requests than calls, and less work.",
        queries=(
            (_sum("", _rate("puts_value_network_rows_total")), "requests"),
            (_sum("", _rate("puts_value_network_calls_total")), "calls"),
        ),
        unit="cps",
    ),
)

FALLBACKS = (
    Panel(
        title="Fallback share",
        text="Production weights although control was asked for, of the requests that asked for it.",
        queries=(
            (
                f"{_sum('', _rate('puts_fallbacks_total', ASKED))}"
                f" / ({_sum('', _rate('puts_requests_total', ROUTES, SERVED))}"
                f" - {_sum('', _rate('puts_fallbacks_total', NOT_ASKED))})",
                "fallbacks",
            ),
        ),
        unit="percentunit",
        kind="stat",
        steps=(("yellow", 0.01), ("red", 0.05)),
        width=4,
    ),
    Panel(
        title="Fallbacks by reason",
        text="late and overloaded: slow; unavailable and breaker_open: down; invalid_answer: rubbish; "
        "state_*: the callers' feature pipeline; surface_mismatch: a model of another control surface; "
        "control_off: switched off by the operator or the caller, no fault.",
        queries=((_sum("reason", _rate("puts_fallbacks_total")), "{{reason}}"),),
        unit="reqps",
        stacked=True,
        width=10,
    ),
    Panel(
        title="Value-network servers",
        text="1: fits; 0: nobody answers; -1: made for another surface. The worst of all replicas.",
        queries=((f"min by (address) ({of_jobs('puts_value_network_up')})", "{{address}}"),),
        width=10,
    ),
    Panel(
        title="Breakers",
        text="0 closed, 1 half open, 2 open. The worst of all replicas.",
        queries=(
            (f"max by (upstream, address) ({of_jobs('puts_breaker_state')})", "{{upstream}} {{address}}"),
        ),
        steps=(("yellow", 1), ("red", 2)),
        width=12,
    ),
    Panel(
        title="Breakers that turned",
        text="To open, half open, closed.",
        queries=((_sum("address, to", _rate("puts_breaker_turns_total")), "{{address}} {{to}}"),),
        unit="cps",
        width=12,
    ),
)

POLICY = (
    Panel(
        title="Policy in force",
        text="Newest and oldest version of all replicas: different for longer than a second is a fault.",
        queries=(
            (f"max({of_jobs('puts_policy_version')})", "newest"),
            (f"min({of_jobs('puts_policy_version_oldest')})", "oldest"),
        ),
        kind="stat",
        width=4,
    ),
    Panel(
        title="Requests by arm",
        text="Compare with the shares of the policy.",
        queries=((_sum("arm", _rate("puts_arm_requests_total")), "{{arm}}"),),
        unit="reqps",
        stacked=True,
        width=7,
    ),
    Panel(
        title="Exploration share",
        text="Explored: drawn and served. Capped: drawn, but the cap was reached.",
        queries=(
            (
                f"{_sum('outcome', _rate('puts_explorations_total'))}"
                f" / on () group_left () {_sum('', _rate('puts_arm_requests_total'))}",
                "{{outcome}}",
            ),
            (f"max({of_jobs('puts_exploration_share')})", "allowed by the policy"),
        ),
        unit="percentunit",
        steps=(("yellow", 0.0125), ("red", 0.02)),
        width=6,
    ),
    Panel(
        title="Policy store",
        text="1: every replica is in step with the store. 0: replicas go on with what they have.",
        queries=((f"min({of_jobs('puts_policy_store_up')})", "store"),),
        kind="stat",
        width=4,
    ),
    Panel(
        title="Changes and roll-backs",
        text="Changes made through a sidecar, those that a guardrail undid, switches to static weights "
        "because of drift, and polls that found the store not usable.",
        queries=(
            (_sum("kind", _rate("puts_policy_changes_total")), "{{kind}}"),
            (_sum("", _rate("puts_guardrail_rollbacks_total")), "undone by a guardrail"),
            (_sum("", _rate("puts_drift_switches_total")), "static weights because of drift"),
            (_sum("", _rate("puts_policy_store_errors_total")), "polls that failed"),
        ),
        unit="cps",
        width=10,
    ),
    Panel(
        title="Actions chosen",
        text="The ten most frequent. One action for everybody is no personalization.",
        queries=((f"topk(10, {_sum('action', _rate('puts_actions_total'))} > 0)", "action {{action}}"),),
        unit="reqps",
        stacked=True,
        width=7,
    ),
)

DRIFT = (
    Panel(
        title="Drift",
        text="score: the ranker's scores against the reference; 0.1 is worth a look, from 0.25 on weights "
        "mean something else. weight, value: what is served against what the frontier says. Worst replica.",
        queries=((f"max by (what) ({of_jobs('puts_drift')})", "{{what}}"),),
        steps=(("yellow", 0.1), ("red", 0.25)),
        width=16,
    ),
    Panel(
        title="Drift level",
        text="0: as it was. 1: watch it. 2: use static weights, fit on newer logs; /v1/drift says why.",
        queries=((f"max({of_jobs('puts_drift_level')})", "level"),),
        kind="stat",
        steps=(("yellow", 1), ("red", 2)),
        width=4,
    ),
    Panel(
        title="Drift reference",
        text="1: scores are compared. 0: the reference is still collected, nothing would be seen.",
        queries=((f"min({of_jobs('puts_drift_reference')})", "reference"),),
        kind="stat",
        width=4,
    ),
)

DECISION_LOG = (
    Panel(
        title="Decisions lost",
        text="By reason. The log never slows a request: it drops and counts.",
        queries=((_sum("reason", _rate("puts_decision_log_dropped_total")), "{{reason}}"),),
        unit="cps",
        steps=(("red", 0.001),),
    ),
    Panel(
        title="Decisions written",
        text="To the spool; and those of dead processes that became segments.",
        queries=(
            (_sum("", _rate("puts_decision_log_written_total")), "written"),
            (_sum("", _rate("puts_decision_log_recovered_rows_total")), "recovered"),
        ),
        unit="cps",
    ),
    Panel(
        title="Queue",
        text="Decisions in memory, and ended spool files that wait for the storage.",
        queries=(
            (_sum("", of_jobs("puts_decision_log_queue_records")), "records"),
            (_sum("", of_jobs("puts_decision_log_spool_files_waiting")), "files"),
        ),
    ),
    Panel(
        title="Since the last write",
        text="After kill -9 at most this is lost.",
        queries=(
            (f"time() - (max({of_jobs('puts_decision_log_last_write_timestamp_seconds')}) > 0)", "age"),
        ),
        unit="s",
        kind="stat",
        steps=(("yellow", 5.0), ("red", 60.0)),
        width=4,
    ),
    Panel(
        title="Storage",
        text="1: it took the last segment.",
        queries=((f"min({of_jobs('puts_decision_log_storage_up')})", "storage"),),
        kind="stat",
        width=4,
    ),
    Panel(
        title="Spool and memory",
        text="Not a segment yet. The spool grows while the storage does not answer.",
        queries=(
            (f"max({of_jobs('puts_decision_log_spool_bytes')})", "spool"),
            (_sum("", of_jobs("puts_decision_log_queue_bytes")), "memory"),
        ),
        unit="bytes",
    ),
    Panel(
        title="Segments",
        text="Put in place, and refused by the storage.",
        queries=(
            (_sum("", _rate("puts_decision_log_segments_total")), "segments"),
            (_sum("", _rate("puts_decision_log_storage_failures_total")), "refused"),
        ),
        unit="cps",
    ),
    Panel(
        title="Segments' bytes",
        text="What the log adds to the storage.",
        queries=((_sum("", _rate("puts_decision_log_segment_bytes_total")), "written"),),
        unit="Bps",
    ),
)

TRITON = (
    Panel(
        title="Queue time a request",
        text="Waiting for an instance. Grows first when a server has too much to do.",
        queries=((_a_request("nv_inference_queue_duration_us"), "{{model}}"),),
        unit="µs",
        steps=(("yellow", 2_000), ("red", 8_000)),
    ),
    Panel(
        title="Compute time a request",
        text="Inside the model.",
        queries=((_a_request("nv_inference_compute_infer_duration_us"), "{{model}}"),),
        unit="µs",
    ),
    Panel(
        title="Requests in the servers",
        text="Answered, failed by reason, waiting.",
        queries=(
            (_sum("model", _rate("nv_inference_request_success")), "{{model}} answered"),
            (_sum("model, reason", _rate("nv_inference_request_failure")), "{{model}} failed {{reason}}"),
        ),
        unit="reqps",
    ),
    Panel(
        title="Waiting requests",
        text="In the servers' queues now.",
        queries=((_sum("model", of_jobs("nv_inference_pending_request_count")), "{{model}}"),),
        width=12,
    ),
    Panel(
        title="Requests a batch",
        text="What dynamic batching makes of the traffic.",
        queries=(
            (
                f"{_sum('model', _rate('nv_inference_count'))}"
                f" / {_sum('model', _rate('nv_inference_exec_count'))}",
                "{{model}}",
            ),
        ),
        width=12,
    ),
)

ROWS: tuple[tuple[str, tuple[Panel, ...]], ...] = (
    ("Traffic and errors", TRAFFIC),
    ("Latency", LATENCY),
    ("Fallbacks", FALLBACKS),
    ("Policy, arms, exploration", POLICY),
    ("Drift", DRIFT),
    ("Decision log", DECISION_LOG),
    ("Value network and ranker in Triton", TRITON),
)
