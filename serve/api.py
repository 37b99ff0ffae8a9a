"""The HTTP face: one FastAPI application, the same in a test, under uvicorn and in a Ray Serve replica."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from serve.config import SidecarConfig
from serve.metrics import CONTENT_TYPE
from serve.requests import parse_rank, parse_weights
from serve.schema import ErrorAnswer, RankAnswer, RankBody, WeightsAnswer, WeightsBody, request_body
from serve.sidecar import Failure, Sidecar
from triton_models.errors import RequestError, RequestMalformedError, RequestTooLargeError

logger = logging.getLogger(__name__)

TRACE_HEADERS = ("traceparent", "tracestate")
"""W3C trace context, passed on to both upstreams as gRPC metadata."""

MAX_TRACE_HEADER = 512

MakeSidecar = Callable[[SidecarConfig], Sidecar]

ERROR_ANSWERS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorAnswer, "description": "not JSON"},
    413: {"model": ErrorAnswer, "description": "over a limit"},
    422: {"model": ErrorAnswer, "description": "a field is wrong"},
}
RANKER_ERRORS: dict[int | str, dict[str, Any]] = {
    503: {"model": ErrorAnswer, "description": "the ranker gave no ranking, or there is none"}
}


def json_answer(data: object, status: int = 200) -> Response:
    """A JSON response."""
    return Response(orjson.dumps(data), status_code=status, media_type="application/json")


def error_answer(status: int, kind: str, message: str) -> Response:
    """An error in the one shape that all errors have."""
    return json_answer({"error": {"type": kind, "message": message}}, status)


def trace_headers(request: Request) -> dict[str, str]:
    """W3C trace context of a request; malformed values are left out (gRPC metadata is ASCII)."""
    found = {}
    for name in TRACE_HEADERS:
        value = request.headers.get(name)
        if value and len(value) <= MAX_TRACE_HEADER and value.isascii() and value.isprintable():
            found[name] = value
    return found


async def read_body(request: Request, limit: int) -> bytes:
    """The body, but never more than ``limit`` bytes of it in memory.

    Raises:
        RequestTooLargeError: it is longer.
    """
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise RequestTooLargeError(f"body: at most {limit} bytes")
        chunks.append(chunk)
    return b"".join(chunks)


def refuse(error: RequestError) -> Response:
    """A request that cannot be served, as an answer."""
    if isinstance(error, RequestTooLargeError):
        return error_answer(413, "too_large", str(error))
    if isinstance(error, RequestMalformedError):
        return error_answer(400, "malformed", str(error))
    return error_answer(422, "invalid", str(error))


def create_app(config: SidecarConfig, make_sidecar: MakeSidecar = Sidecar) -> FastAPI:
    """The application. Its sidecar is made at start, in the event loop: ``app.state.sidecar``."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        sidecar = make_sidecar(config)
        app.state.sidecar = sidecar
        await sidecar.start()
        try:
            yield
        finally:
            await sidecar.stop()

    app = FastAPI(
        title="PRL-PUTS sidecar",
        description="Utility weights per request, beside the ranker; production weights whenever in doubt.",
        version="1",
        lifespan=lifespan,
    )
    _add_serving(app, config)
    _add_operations(app)
    app.add_exception_handler(HTTPException, _http_error)
    return app


async def _http_error(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    return error_answer(
        status, "http", f"{request.method} {request.url.path[:200]}: {getattr(error, 'detail', '')}"
    )


def _add_serving(app: FastAPI, config: SidecarConfig) -> None:
    limits = config.limits
    kind = config.ranker.candidates_type if config.ranker else "INT64"

    async def answer(request: Request, route: str) -> Response:
        sidecar: Sidecar = request.app.state.sidecar
        result: dict[str, Any] | Failure
        try:
            body = await read_body(request, limits.body_bytes)
            if route == "rank":
                result = await sidecar.rank(parse_rank(body, limits, kind), trace_headers(request))
            else:
                result = await sidecar.weights(parse_weights(body, limits), trace_headers(request))
        except RequestError as error:
            response = refuse(error)
        except ClientDisconnect:
            response = error_answer(400, "disconnected", "the body did not arrive whole")
        else:
            if isinstance(result, Failure):
                response = error_answer(503, result.type, result.message)
            else:
                response = json_answer(result)
        sidecar.metrics.count_request(route, response.status_code)
        return response

    @app.post(
        "/v1/rank",
        response_model=RankAnswer,
        responses=ERROR_ANSWERS | RANKER_ERRORS,
        openapi_extra=request_body(RankBody),
    )
    async def rank(request: Request) -> Response:
        """State and candidate ids → the top k by utility."""
        return await answer(request, "rank")

    @app.post(
        "/v1/weights",
        response_model=WeightsAnswer,
        responses=ERROR_ANSWERS,
        openapi_extra=request_body(WeightsBody),
    )
    async def weights(request: Request) -> Response:
        """State → weights only, for those who blend in their own ranker."""
        return await answer(request, "weights")


def _add_operations(app: FastAPI) -> None:
    @app.get("/healthz")
    async def healthz() -> Response:
        """Liveness: the process answers."""
        return json_answer({"alive": True})

    @app.get("/readyz")
    async def readyz(request: Request) -> Response:
        """Readiness: 503 while the ranker is not ready. A missing value network only degrades."""
        ready, report = await request.app.state.sidecar.readiness()
        return json_answer(report, 200 if ready else 503)

    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        """Prometheus text."""
        return Response(request.app.state.sidecar.metrics.exposition(), media_type=CONTENT_TYPE)
