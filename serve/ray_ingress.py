"""What stands before Ray Serve's own handling of a request where a replica takes its requests itself.

For each request Ray starts a task that waits for the caller to hang up, a queue that the body passes
through, and another task for the application, in order to cancel it then. The sidecar wants none of it: what
it has begun it lets end (:mod:`serve.fanout`), as under plain uvicorn, and a body that breaks off is found
out by whoever reads it. Ray leaves all this away for a request with ``x-request-disconnect-disabled: ?1``.
"""

from __future__ import annotations

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

CALLBACK = "serve.ray_ingress:middlewares"
"""For ``RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH``, which Ray reads in the replica."""

UNWATCHED = (b"x-request-disconnect-disabled", b"?1")


class Unwatched:
    """ASGI middleware: no request is cancelled because its caller has gone."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand on, with Ray's header set whatever the caller says of it: of two the last counts."""
        if scope["type"] == "http":
            scope["headers"] = [*scope["headers"], UNWATCHED]
        await self._app(scope, receive, send)


def middlewares() -> list[Middleware]:
    """What Ray Serve puts around its HTTP application."""
    return [Middleware(Unwatched)]
