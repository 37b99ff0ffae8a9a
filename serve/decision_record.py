"""What the request path hands to the decision log: one small object per logged request.

Only references and numbers are put together here, on the event loop; the Arrow work is the writer's
(:mod:`serve.decision_batch`). The state is held as the tensors that were encoded for the value network,
float32 and of known size, and not as the request's lists, which may be a hundred times larger; of the
context, whose codes forget unknown words, the words themselves are kept.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, NamedTuple

from serve.requests import WeightsRequest
from triton_models.encoding import StateTensors
from triton_models.surface import Surface

SCALE = 2.0**64

MAX_WORD = 256
"""Characters kept of a context value: what is longer is in no vocabulary."""

SAMPLING_KEY = b"puts decision log"
"""Makes the sample independent of the policy's draws, which hash the same ids."""

EXPLORATION = "exploration"


class DecisionRecord(NamedTuple):
    """One decision, as the answer tells it."""

    request_id: str
    timestamp_us: int
    """Unix time in microseconds."""
    user_id: str | None
    cohort: str | None
    route: str
    answer: Mapping[str, Any]
    """Fields of the answer that become columns, without the ranking."""
    tensors: StateTensors | None
    """None: the state could not be encoded."""
    context: tuple[str | None, ...]
    frontier_fingerprint: str | None
    run_id: str | None
    log_probability: float
    trace_id: str | None


KEPT = (
    *("weights", "action", "values", "source", "reason", "arm", "policy_version", "propensity"),
    *("scalarization", "surface_fingerprint", "timings_ms"),
)
"""Of an answer; the ranking is not kept."""


def log_probability(answer: Mapping[str, Any], sample_rate: float) -> float:
    """Probability with which a decision of this kind is logged: every exploration, a share of the rest."""
    return 1.0 if answer["source"] == EXPLORATION else sample_rate


def sampled(request_id: str, probability: float) -> bool:
    """Whether a request is in the sample: the hash of its id, read as a number in [0, 1), is below.

    The same on every replica and after a restart; a smaller rate's sample is part of a larger one's.
    """
    if probability >= 1.0:
        return True
    digest = blake2b(request_id.encode("utf-8", "surrogatepass"), digest_size=8, key=SAMPLING_KEY).digest()
    return int.from_bytes(digest, "big") < probability * SCALE


def make_record(
    surface: Surface,
    request: WeightsRequest,
    answer: Mapping[str, Any],
    *,
    route: str,
    tensors: StateTensors | None,
    probability: float,
    frontier_fingerprint: str | None = None,
    run_id: str | None = None,
    trace_id: str | None = None,
) -> DecisionRecord:
    """The record of an answer that was made. A few microseconds: this is on the event loop."""
    return DecisionRecord(
        request_id=request.request_id,
        timestamp_us=time.time_ns() // 1000,
        user_id=request.user_id,
        cohort=request.cohort,
        route=route,
        answer={name: answer.get(name) for name in KEPT},
        tensors=_owned(tensors) if tensors else None,
        context=_context(surface, request.state) if tensors else (),
        frontier_fingerprint=frontier_fingerprint,
        run_id=run_id,
        log_probability=probability,
        trace_id=trace_id,
    )


def _owned(tensors: StateTensors) -> StateTensors:
    """Tensors that hold no memory but their own: a view of a binary body would keep all of it."""
    return {name: tensor if tensor.base is None else tensor.copy() for name, tensor in tensors.items()}


def _context(surface: Surface, state: Mapping[str, Any] | None) -> tuple[str | None, ...]:
    """The words of the context, surface order; only called for a state that was encoded."""
    context = (state or {}).get("context") or {}
    words = (context.get(name) for name in surface.state.context)
    return tuple(word if word is None else word[:MAX_WORD] for word in words)
