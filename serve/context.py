"""Who a line of log is written for: the request under way, carried by a context variable.

A task inherits the context that it was started in, so a call that outlives its request (serve.fanout) still
logs under that request's id.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(slots=True)
class RequestContext:
    """One request, as far as it is known yet. Mutable: what is decided is filled in."""

    request_id: str
    trace_id: str | None = None
    policy_version: int | None = None
    arm: str | None = None
    reason: str | None = None
    user_id: str | None = None
    """Never written: kept so that it can be blotted out of whatever is."""


CURRENT: ContextVar[RequestContext | None] = ContextVar("puts_request", default=None)


def current_request_id() -> str | None:
    """Id of the request under way."""
    context = CURRENT.get()
    return None if context is None else context.request_id
