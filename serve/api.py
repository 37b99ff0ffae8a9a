"""The HTTP face: one FastAPI application, the same in a test, under uvicorn and in a Ray Serve replica."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse

from serve.answers import error_answer, json_answer, read_body, refuse
from serve.config import SidecarConfig
from serve.context import CURRENT
from serve.drift_api import add_drift
from serve.guard import Guard, trace_of
from serve.hot_path import RANK, WEIGHTS, Handler, HotPath
from serve.metrics import CONTENT_TYPE
from serve.openapi import request_body
from serve.openapi_tensors import TENSOR_ANSWER, with_tensors
from serve.policy_api import add_policies
from serve.rankers import Failure
from serve.requests import RankRequest, WeightsRequest, parse_rank, parse_weights
from serve.schema import (
    Alive,
    ErrorAnswer,
    RankAnswer,
    RankBody,
    Readiness,
    WeightsAnswer,
    WeightsBody,
)
from serve.sidecar import Sidecar
from serve.tensor_body import (
    LENGTH_HEADER,
    MEDIA_TYPE,
    parse_rank_tensors,
    parse_weights_tensors,
    tensor_answer,
)
from triton_models.errors import RequestError

logger = logging.getLogger(__name__)

NO_FAULT = frozenset({None, "control_off", "state_incomplete", "state_invalid"})
"""Reasons that are the operator's or the caller's own; on-call hears of all others."""

AnyRequest = TypeVar("AnyRequest", bound=WeightsRequest)

MakeSidecar = Callable[[SidecarConfig], Sidecar]

ERROR_ANSWERS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorAnswer, "description": "not JSON, or tensors that do not end where the body does"},
    408: {"model": ErrorAnswer, "description": "the body came too slowly"},
    413: {"model": ErrorAnswer, "description": "over a limit"},
    422: {"model": ErrorAnswer, "description": "a field is wrong"},
    431: {"model": ErrorAnswer, "description": "the headers are too long"},
}
RANKER_ERRORS: dict[int | str, dict[str, Any]] = {
    503: {"model": ErrorAnswer, "description": "the ranker gave no ranking, or there is none"}
}


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
        # These pages load scripts from elsewhere; /openapi.json is what tools read.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    handlers: dict[str, Handler] = {}
    app.add_middleware(HotPath, handlers=handlers)  # the first is the innermost
    app.add_middleware(Guard, header_bytes=config.limits.header_bytes)
    _add_serving(app, config, handlers)
    add_policies(app, config)
    add_drift(app, config)
    _add_operations(app)
    app.add_exception_handler(HTTPException, _http_error)
    return app


async def _http_error(_: Request, error: Exception) -> Response:
    # What was asked for is not repeated: an answer that echoes is somebody's tool.
    status = error.status_code if isinstance(error, HTTPException) else 500
    response = error_answer(status, "http", str(getattr(error, "detail", "")))
    response.headers.update(getattr(error, "headers", None) or {})
    return response


def _named(request: AnyRequest) -> AnyRequest:
    """Tell the log whose request this is."""
    if (context := CURRENT.get()) is not None:
        context.request_id, context.user_id = request.request_id, request.user_id
    return request


def _note_failure(failure: Failure) -> None:
    if (context := CURRENT.get()) is not None:
        context.reason = failure.type
    logger.warning("no ranking: %s", failure.message)


def _note_answer(answer: dict[str, Any]) -> None:
    """A line for the log where the value network was to blame; a storm of them is cut (serve.logs)."""
    if (context := CURRENT.get()) is not None:
        context.reason = answer["reason"]
    if answer["reason"] not in NO_FAULT:
        logger.warning("production weights instead of the value network's")


def _add_serving(app: FastAPI, config: SidecarConfig, handlers: dict[str, Handler]) -> None:
    limits = config.limits
    kind = config.ranker.candidates_type if config.ranker else "INT64"

    needed = config.ranker.candidate_inputs if config.ranker else ()

    def parse(request: Request, body: bytes) -> RankRequest:
        header_length = request.headers.get(LENGTH_HEADER)
        if header_length is not None:
            return parse_rank_tensors(body, header_length, config)
        if needed:
            raise RequestError(
                f"the ranker needs {', '.join(needed)} of each candidate: send tensors, with {LENGTH_HEADER}"
            )
        return parse_rank(body, limits, kind)

    def parse_state(request: Request, body: bytes) -> WeightsRequest:
        header_length = request.headers.get(LENGTH_HEADER)
        if header_length is not None:
            return parse_weights_tensors(body, header_length, config)
        return parse_weights(body, limits)

    def ranking(request: Request, result: dict[str, Any]) -> Response:
        if MEDIA_TYPE not in request.headers.get("accept", ""):
            return json_answer(result)
        content, length = tensor_answer(result, kind)
        return Response(content, media_type=MEDIA_TYPE, headers={LENGTH_HEADER: str(length)})

    async def answer(request: Request, route: str) -> Response:
        sidecar: Sidecar = request.app.state.sidecar
        trace = trace_of(request.scope).headers
        result: dict[str, Any] | Failure
        try:
            body = await read_body(request, limits)
            if route == "rank":
                result = await sidecar.rank(_named(parse(request, body)), trace)
            else:
                result = await sidecar.weights(_named(parse_state(request, body)), trace)
        except RequestError as error:
            response = refuse(error)
        except ClientDisconnect:
            response = error_answer(400, "disconnected", "the body did not arrive whole")
        else:
            if isinstance(result, Failure):
                _note_failure(result)
                response = error_answer(503, result.type, result.message)
            else:
                _note_answer(result)
                response = ranking(request, result) if route == "rank" else json_answer(result)
        sidecar.metrics.count_request(route, response.status_code)
        return response

    @app.post(
        RANK,
        response_model=RankAnswer,
        responses=ERROR_ANSWERS | RANKER_ERRORS | {200: TENSOR_ANSWER},
        openapi_extra=with_tensors(request_body(RankBody, config), config, ranks=True),
    )
    async def rank(request: Request) -> Response:
        """State and candidate ids → the top k by utility."""
        return await answer(request, "rank")

    @app.post(
        WEIGHTS,
        response_model=WeightsAnswer,
        responses=ERROR_ANSWERS,
        openapi_extra=with_tensors(request_body(WeightsBody, config), config, ranks=False),
    )
    async def weights(request: Request) -> Response:
        """State → weights only, for those who blend in their own ranker."""
        return await answer(request, "weights")

    handlers[RANK], handlers[WEIGHTS] = rank, weights


def _add_operations(app: FastAPI) -> None:
    @app.get("/healthz", response_model=Alive)
    async def healthz() -> Response:
        """Liveness: the process answers."""
        return json_answer({"alive": True})

    @app.get(
        "/readyz",
        response_model=Readiness,
        responses={503: {"model": Readiness, "description": "no ranking can be given"}},
    )
    async def readyz(request: Request) -> Response:
        """Readiness: 503 while the ranker is not ready. A missing value network only degrades."""
        ready, report = await request.app.state.sidecar.readiness()
        return json_answer(report, 200 if ready else 503)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics(request: Request) -> Response:
        """Prometheus text."""
        return Response(request.app.state.sidecar.metrics.exposition(), media_type=CONTENT_TYPE)
