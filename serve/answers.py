"""What every route shares: one shape of errors, bodies read within limits."""

from __future__ import annotations

import asyncio

import orjson
from fastapi import Request, Response
from starlette.requests import ClientDisconnect

from serve.config import Limits
from serve.guard import error_body
from triton_models.errors import (
    RequestError,
    RequestMalformedError,
    RequestTooLargeError,
    RequestTooSlowError,
)

UNREAD = frozenset({408, 413})
"""Answers given before the body was read to its end: the connection cannot be used again."""


def json_answer(data: object, status: int = 200) -> Response:
    """A JSON response."""
    return Response(orjson.dumps(data), status_code=status, media_type="application/json")


def error_answer(status: int, kind: str, message: str) -> Response:
    """An error in the one shape that all errors have."""
    response = Response(error_body(kind, message), status_code=status, media_type="application/json")
    if status in UNREAD:
        response.headers["connection"] = "close"
    return response


async def read_body(request: Request, limits: Limits) -> bytes:
    """The body, but never more than the limit of it in memory, and no longer waited for than the limit.

    Raises:
        RequestTooLargeError: it is longer.
        RequestTooSlowError: it did not arrive in time.
    """
    # The receive function itself: Starlette's generator does the same at three times the cost.
    receive, chunks, size = request.receive, list[bytes](), 0
    try:
        async with asyncio.timeout(limits.body_timeout_s):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                chunk = message.get("body", b"")
                size += len(chunk)
                if size > limits.body_bytes:
                    raise RequestTooLargeError(f"body: at most {limits.body_bytes} bytes")
                chunks.append(chunk)
                if not message.get("more_body", False):
                    return b"".join(chunks)
    except TimeoutError as error:
        raise RequestTooSlowError(f"body: did not arrive within {limits.body_timeout_s:g} s") from error


def refuse(error: RequestError) -> Response:
    """A request that cannot be served, as an answer."""
    if isinstance(error, RequestTooSlowError):
        return error_answer(408, "too_slow", str(error))
    if isinstance(error, RequestTooLargeError):
        return error_answer(413, "too_large", str(error))
    if isinstance(error, RequestMalformedError):
        return error_answer(400, "malformed", str(error))
    return error_answer(422, "invalid", str(error))
