"""W3C trace context, level 1 (https://www.w3.org/TR/trace-context/): read, checked, passed on unchanged.

::

    traceparent = "00-" trace-id(32 hex) "-" parent-id(16 hex) "-" flags(2 hex)

The sidecar records no spans of its own, so it does not put itself between caller and models: a parent-id
that no backend ever receives would cut the trace in two. It hands the caller's ``traceparent`` on as it
came; Triton's spans become children of the caller's span, and the sidecar's own times are in ``timings_ms``
of the answer, beside the trace id of the headers. A request without a trace starts none.

A malformed ``traceparent`` is dropped, and ``tracestate`` with it, as the recommendation demands; a malformed
``tracestate`` is dropped alone. Neither fails a request.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

TRACEPARENT, TRACESTATE = b"traceparent", b"tracestate"

MAX_TRACESTATE = 512
MAX_TRACESTATE_MEMBERS = 32

_PARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-[\x21-\x7e]{0,200})?")
_KEY = r"(?:[a-z][a-z0-9_\-*/]{0,255}|[a-z0-9][a-z0-9_\-*/]{0,240}@[a-z][a-z0-9_\-*/]{0,13})"
_MEMBER = re.compile(rf"({_KEY})=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{{0,255}}[\x21-\x2b\x2d-\x3c\x3e-\x7e]")


@dataclass(frozen=True)
class TraceContext:
    """What a request says about the trace that it belongs to."""

    trace_id: str | None = None
    """32 lower-case hexadecimal digits; None: the request belongs to no trace."""
    headers: dict[str, str] = field(default_factory=dict)
    """What is passed on, as HTTP headers or gRPC metadata."""


NO_TRACE = TraceContext()


def read_trace(headers: Iterable[tuple[bytes, bytes]]) -> TraceContext:
    """Trace context of raw header pairs with lower-case names; what is malformed is left out."""
    parents, states = [], []
    for name, value in headers:
        if name == TRACEPARENT:
            parents.append(value)
        elif name == TRACESTATE:
            states.append(value)
    if len(parents) != 1:
        return NO_TRACE
    parent = parents[0].decode("latin-1").strip()
    trace_id = _trace_id(parent)
    if trace_id is None:
        return NO_TRACE
    passed_on = {"traceparent": parent}
    state = ",".join(part.decode("latin-1").strip(" \t") for part in states)
    if state and _is_tracestate(state):
        passed_on["tracestate"] = state
    return TraceContext(trace_id, passed_on)


def _trace_id(parent: str) -> str | None:
    match = _PARENT.fullmatch(parent)
    if match is None:
        return None
    version, trace_id, parent_id, _, rest = match.groups()
    # Later versions may say more behind the flags; this one may not.
    if version == "ff" or (version == "00" and rest is not None):
        return None
    if not trace_id.strip("0") or not parent_id.strip("0"):
        return None
    return trace_id


def _is_tracestate(state: str) -> bool:
    if len(state) > MAX_TRACESTATE:
        return False
    members = [member.strip(" \t") for member in state.split(",")]
    members = [member for member in members if member]
    if not 1 <= len(members) <= MAX_TRACESTATE_MEMBERS:
        return False
    keys = [match[1] for member in members if (match := _MEMBER.fullmatch(member))]
    return len(keys) == len(members) == len(set(keys))
