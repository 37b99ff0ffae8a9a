"""Drift over HTTP: read what is known, and say that what is served now is how it should be."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from pydantic import BaseModel, ConfigDict

from serve.access import Access
from serve.config import SidecarConfig
from serve.drift_answers import DriftState
from serve.drift_monitor import DriftMonitor
from serve.openapi import json_body, plain_schema
from serve.policy import Text
from serve.policy_api import (
    CHANGE_ERRORS,
    DESCRIBED_BEARER,
    READ_ERRORS,
    author_of,
    guarded,
    operator_of,
    read_model,
)


class Baseline(BaseModel):
    """Body of ``POST /v1/drift/baseline``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    author: Text | None = None
    """Who says so, where the token does not."""


def add_drift(app: FastAPI, config: SidecarConfig) -> None:
    """Add the routes to the application."""
    access = Access(config.access)
    routes = APIRouter(dependencies=[Depends(DESCRIBED_BEARER)] if access.has_tokens else [])

    def monitor(request: Request) -> DriftMonitor:
        found: DriftMonitor = request.app.state.sidecar.drift
        return found

    @routes.get("/v1/drift", response_model=DriftState, responses=READ_ERRORS)
    async def drift(request: Request) -> Response:
        """How far the ranker's scores and the served choices are from what they were, in this replica."""

        async def answer() -> Mapping[str, Any]:
            access.reader(request.headers.get("authorization"))
            return monitor(request).describe()

        return await guarded(answer())

    @routes.post(
        "/v1/drift/baseline",
        response_model=DriftState,
        responses=CHANGE_ERRORS,
        openapi_extra=json_body(plain_schema(Baseline)),
    )
    async def baseline(request: Request) -> Response:
        """Collect another reference from now on, in all replicas: scores are as they should be."""

        async def answer() -> Mapping[str, Any]:
            operator = operator_of(access, request)
            given = await read_model(request, Baseline)
            await asyncio.to_thread(monitor(request).begin_reference, author_of(operator, given.author))
            return monitor(request).describe()

        return await guarded(answer())

    app.include_router(routes)
