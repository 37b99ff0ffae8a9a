"""The way of a request through a Ray Serve replica that takes its requests itself.

Ray Serve makes the replica, gives it its port, its TLS and its listener, watches its health and drains it.
What it wraps around each single request (a task that waits for the caller to hang up, metadata, contexts,
counters, a log line) costs a fifth of what the replica spends on one and does nothing for the sidecar, which
has its own deadline, metrics and logs, and lets what it has begun end (:mod:`serve.fanout`). Two steps:

* the routes on the path of every page go straight to the application (:func:`hand_over`), with the bound on
  requests at work that Ray would keep;
* every other request goes on to Ray, without its watch for callers that hang up: Ray leaves that away for a
  request with ``x-request-disconnect-disabled: ?1``.

A replica drains all the same: Ray ends its listener before the application, and the listener waits for the
requests that it has begun. What Ray counts of requests (``serve_num_http_requests``, and its autoscaling by
requests in progress) leaves these routes out; ``puts_requests_total`` has them.
"""

from __future__ import annotations

import asyncio

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from serve.hot_path import HOT_ROUTES

CALLBACK = "serve.ray_ingress:middlewares"
"""For ``RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH``, which Ray reads in the replica."""

UNWATCHED = (b"x-request-disconnect-disabled", b"?1")


class Handover:
    """An application and how many of its requests may be at work at once; further ones wait their turn."""

    def __init__(self, app: ASGIApp, max_ongoing_requests: int) -> None:
        self._app = app
        self._places = asyncio.Semaphore(max_ongoing_requests)

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, once there is a place."""
        async with self._places:
            await self._app(scope, receive, send)


_handed_over: Handover | None = None
"""Of this process, which is one replica: Ray makes the middleware without saying for whom."""


def hand_over(app: ASGIApp, *, max_ongoing_requests: int) -> None:
    """From now on this process's listener hands the hot routes straight to ``app``."""
    global _handed_over
    _handed_over = Handover(app, max_ongoing_requests)


class Ingress:
    """ASGI middleware, outside of Ray's own handling."""

    def __init__(self, app: ASGIApp) -> None:
        self._ray = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve, or hand on with Ray's header set whatever the caller says of it: of two the last counts."""
        if scope["type"] == "http":
            if _handed_over is not None and scope["path"] in HOT_ROUTES:
                await _handed_over.serve(scope, receive, send)
                return
            scope["headers"] = [*scope["headers"], UNWATCHED]
        await self._ray(scope, receive, send)


def middlewares() -> list[Middleware]:
    """What Ray Serve puts around its HTTP application."""
    return [Middleware(Ingress)]
