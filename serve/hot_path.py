"""The routes on the path of every page, past the framework.

FastAPI describes ``/v1/rank`` and ``/v1/weights`` and could serve them, but its router, its exit stack, its
dependency solver and its exception middleware do nothing for a handler that reads its own body, and cost a
third of the sidecar's own time per request. This middleware, the innermost, hands those requests straight
to the handler that the FastAPI route has as well. All other paths and methods go on.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from fastapi import Request, Response
from starlette.types import ASGIApp, Receive, Scope, Send

RANK, WEIGHTS = "/v1/rank", "/v1/weights"
HOT_ROUTES = frozenset({RANK, WEIGHTS})
"""On the path of every page."""

Handler = Callable[[Request], Awaitable[Response]]


class HotPath:
    """ASGI middleware: ``POST`` to one of ``handlers`` is answered here."""

    def __init__(self, app: ASGIApp, *, handlers: Mapping[str, Handler]) -> None:
        self._app = app
        self._handlers = handlers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or hand on."""
        handler = self._handlers.get(scope["path"]) if scope["type"] == "http" else None
        if handler is None or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        response = await handler(Request(scope, receive))
        await response(scope, receive, send)
