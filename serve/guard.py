"""What surrounds every HTTP request: its id and trace, a limit on its headers, and a last net for our bugs.

Plain ASGI, since it is on the path of every request. A bug becomes a JSON 500 with the request id, by which
the traceback can be found in the log; the caller sees nothing of the inside.
"""

from __future__ import annotations

import logging
import re
import uuid

import orjson
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.context import CURRENT, RequestContext, current_request_id
from serve.trace import TraceContext, read_trace

logger = logging.getLogger(__name__)

REQUEST_ID = b"x-request-id"
_SAFE_ID = re.compile(rb"[A-Za-z0-9._:\-]{1,128}")

TRACE_KEY = "puts.trace"
"""Where the trace context lies in the ASGI scope."""


def trace_of(scope: Scope) -> TraceContext:
    """The trace context that the guard has read."""
    found = scope.get(TRACE_KEY)
    return found if isinstance(found, TraceContext) else read_trace(scope["headers"])


class Guard:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, *, header_bytes: int) -> None:
        self._app = app
        self._header_bytes = header_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or hand on what is not one."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        trace = scope[TRACE_KEY] = read_trace(scope["headers"])
        given = next((value for name, value in scope["headers"] if name == REQUEST_ID), b"")
        fits = _SAFE_ID.fullmatch(given) is not None
        request_id = given.decode() if fits else uuid.uuid4().hex
        context = RequestContext(request_id, trace.trace_id)
        CURRENT.set(context)
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [
                    *message.get("headers", ()),
                    *_extra_headers(context, request_id, trace),
                ]
            await send(message)

        if sum(len(name) + len(value) for name, value in scope["headers"]) > self._header_bytes:
            text = f"headers: at most {self._header_bytes} bytes"
            await send_error(send_with_id, 431, "too_large", text)
            return
        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            logger.exception("a bug: the request failed")
            if started:
                raise
            text = "the sidecar failed; its log says more under this request id"
            await send_error(send_with_id, 500, "internal", text)


def _extra_headers(context: RequestContext, own_id: str, trace: TraceContext) -> list[tuple[bytes, bytes]]:
    # The body may have named the request since; a name that is no header value stays in the body.
    named = context.request_id.encode()
    request_id = named if _SAFE_ID.fullmatch(named) else own_id.encode()
    headers = [(REQUEST_ID, request_id), (b"x-content-type-options", b"nosniff")]
    if trace.trace_id is not None:
        headers.append((b"traceparent", trace.headers["traceparent"].encode()))
    return headers


def error_body(kind: str, message: str) -> bytes:
    """The one shape of all errors."""
    return orjson.dumps({"error": {"type": kind, "message": message, "request_id": current_request_id()}})


async def send_error(send: Send, status: int, kind: str, message: str) -> None:
    """An error as raw ASGI messages; the connection is closed after it."""
    body = error_body(kind, message)
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
