"""Operating policies over HTTP: read, apply, roll back, report a guardrail metric.

Nothing here runs on the event loop for longer than parsing takes: the store is asked in a thread.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import orjson
from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.security import HTTPBearer
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from serve.access import Access, Identity
from serve.answers import error_answer, json_answer, read_body, refuse
from serve.config import SidecarConfig
from serve.guardrails import MetricReport
from serve.openapi import json_body, plain_schema
from serve.policies import Snapshot
from serve.policy import Policy, parse
from serve.policy_rules import Change, Return
from serve.policy_schema import Accepted, InForceAnswer, Numbered, PolicyList, Reported
from serve.policy_store import InForce
from serve.schema import ErrorAnswer
from serve.sidecar import Sidecar
from triton_models.errors import (
    AccessError,
    ForbiddenError,
    PolicyConflictError,
    PolicyError,
    PolicyNotFoundError,
    PutsError,
    RequestError,
    RequestMalformedError,
    StoreError,
    SurfaceMismatchError,
)

UNNAMED = "unnamed operator"

MAX_POLICY_BYTES = 8 * 1024**2
"""A policy with its frontier and its exclusion lists."""

KINDS: tuple[tuple[type[PutsError], int, str], ...] = (
    (ForbiddenError, 403, "forbidden"),
    (AccessError, 401, "no_token"),
    (PolicyNotFoundError, 404, "no_policy"),
    (PolicyConflictError, 409, "conflict"),
    (SurfaceMismatchError, 422, "surface_mismatch"),
    (PolicyError, 422, "invalid"),
    (StoreError, 503, "store_unavailable"),
)

OTHER_METHODS = ["PUT", "PATCH", "DELETE", "OPTIONS", "HEAD", "TRACE", "QUERY"]

Described = dict[int | str, dict[str, Any]]
_Model = TypeVar("_Model", bound=BaseModel)

DESCRIBED_BEARER = HTTPBearer(auto_error=False, scheme_name="bearer")
"""For the description only; :mod:`serve.access` decides."""

READ_ERRORS: Described = {
    401: {"model": ErrorAnswer, "description": "no token, or one that is not known"},
    503: {"model": ErrorAnswer, "description": "the policy store does not answer, or there is none"},
}
CHANGE_ERRORS: Described = READ_ERRORS | {
    400: {"model": ErrorAnswer, "description": "not JSON"},
    408: {"model": ErrorAnswer, "description": "the body came too slowly"},
    403: {"model": ErrorAnswer, "description": "a viewer's token, or changes are not allowed here"},
    409: {"model": ErrorAnswer, "description": "another change came first"},
    413: {"model": ErrorAnswer, "description": "over a limit"},
    422: {"model": ErrorAnswer, "description": "a field is wrong, or the policy may not be applied"},
}
NOT_FOUND: Described = {404: {"model": ErrorAnswer, "description": "there is no such policy"}}


def refuse_policy(error: PutsError) -> Response:
    """An error as an answer."""
    for kind, status, name in KINDS:
        if isinstance(error, kind):
            answer = error_answer(status, name, str(error))
            if status == 401:
                answer.headers["WWW-Authenticate"] = "Bearer"
            if status in (401, 403):  # given before the body was read
                answer.headers["connection"] = "close"
            return answer
    raise error


async def guarded(answer: Awaitable[Any], status: int = 200) -> Response:
    """Run a handler; its errors are answers."""
    try:
        return json_answer(await answer, status)
    except ClientDisconnect:
        return error_answer(400, "disconnected", "the body did not arrive whole")
    except RequestError as error:
        return refuse(error)
    except PutsError as error:
        return refuse_policy(error)


async def read_model(request: Request, model: type[_Model]) -> _Model:
    """The body as a typed object.

    Raises:
        RequestError, PolicyError: what is wrong with it.
    """
    limits = _sidecar(request).config.limits
    body = await read_body(request, limits.model_copy(update={"body_bytes": MAX_POLICY_BYTES}))
    # Exclusion lists and frontiers can be long; requests are not to wait for their parsing.
    return await asyncio.to_thread(_parse_body, body, model)


def _parse_body(body: bytes, model: type[_Model]) -> _Model:
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RequestMalformedError(f"body: not JSON: {error}") from error
    return parse(model, data, source="body")


def operator_of(access: Access, request: Request, *, content_type: str | None = None) -> Identity:
    """Who wants to change something; ``content_type`` stands in for the request's own.

    Raises:
        AccessError, ForbiddenError: he may not.
    """
    own = request.headers.get("content-type", "")
    return access.operator(
        request.headers.get("authorization"),
        peer=request.client.host if request.client else None,
        host=request.headers.get("host"),
        content_type=own if content_type is None else content_type,
    )


def author_of(identity: Identity, claimed: str | None) -> str:
    """Who a change is by: the token's name, else what the caller says, marked as such."""
    if identity.name is not None:
        return identity.name
    return f"{claimed} ({UNNAMED})" if claimed else UNNAMED


def may_change(access: Access, request: Request) -> bool:
    """Whether who reads could also change: then he may see whom a policy names."""
    try:
        operator_of(access, request, content_type="application/json")
    except AccessError:
        return False
    return True


def shown(policy: Policy, *, whole: bool) -> dict[str, Any]:
    """A policy as plain data; without the users who never explore, unless ``whole``: they are people."""
    return policy.model_dump(mode="json", exclude=None if whole else {"excluded": {"users"}})


def in_force(snapshot: Snapshot, sidecar: Sidecar, now_s: float, *, whole: bool) -> dict[str, Any]:
    """What is in force, and where its ramp stands."""
    policy, activation = snapshot.policy, snapshot.activation
    elapsed_s = snapshot.elapsed_s(now_s)
    ramp = None
    if policy.ramp is not None:
        step = policy.ramp.position(elapsed_s)
        until_s = sum(s.hold_s or 0.0 for s in policy.ramp.steps[: step + 1])
        last = step == len(policy.ramp.steps) - 1
        ramp = {
            "arm": policy.ramp.arm,
            "share": policy.ramp.share(elapsed_s),
            "step": step + 1,
            "steps": len(policy.ramp.steps),
            "next_in_s": None if last else until_s - elapsed_s,
            "watched": sidecar.policies.watch.describe(now_s),
        }
    return {
        "version": policy.version,
        "sequence": activation.sequence,
        "activated_at": activation.at,
        "activated_by": activation.author,
        "activation_reason": activation.reason,
        "shares": policy.shares(elapsed_s),
        "ramp": ramp,
        "control": sidecar.point.control,
        "store": sidecar.keeper.describe(),
        "drift": sidecar.drift.describe()["recommendation"],
        "policy": shown(policy, whole=whole),
        "excluded_users": len(policy.excluded.users),
    }


def accepted(state: InForce) -> dict[str, Any]:
    """The answer to a change: the activation that it made."""
    activation = state.activation
    return {} if activation is None else dict(activation.__dict__)


def add_policies(app: FastAPI, config: SidecarConfig) -> None:
    """Add the routes to the application."""
    access = Access(config.access)
    routes = APIRouter(dependencies=[Depends(DESCRIBED_BEARER)] if access.has_tokens else [])
    _add_reading(routes, access)
    _add_changing(routes, access, (*config.surface.metrics, *config.surface.objectives))
    app.include_router(routes)

    @app.api_route("/v1/policies", methods=OTHER_METHODS, include_in_schema=False)
    async def not_allowed() -> Response:
        # The router would name the methods of the first of the path's routes only.
        raise HTTPException(405, headers={"Allow": "GET, POST"})


def _sidecar(request: Request) -> Sidecar:
    sidecar: Sidecar = request.app.state.sidecar
    return sidecar


def _add_reading(app: APIRouter, access: Access) -> None:
    def read(request: Request) -> Sidecar:
        access.reader(request.headers.get("authorization"))
        return _sidecar(request)

    @app.get("/v1/policy", response_model=InForceAnswer, responses=READ_ERRORS)
    async def policy_in_force(request: Request) -> Response:
        """The policy in force in this replica, and where its ramp stands now."""

        async def answer() -> Mapping[str, Any]:
            sidecar = read(request)
            whole = may_change(access, request)
            return in_force(sidecar.policies.snapshot, sidecar, time.time(), whole=whole)

        return await guarded(answer())

    @app.get("/v1/policies", response_model=PolicyList, responses=READ_ERRORS)
    async def policies(request: Request) -> Response:
        """All policies, newest first, and every activation, newest first."""

        async def answer() -> Mapping[str, Any]:
            store = read(request).keeper.store
            listed = await asyncio.to_thread(store.policies)
            state = await asyncio.to_thread(store.in_force)
            return {"policies": listed, "activations": [a.__dict__ for a in reversed(state.activations)]}

        return await guarded(answer())

    @app.get(
        "/v1/policies/{version}",
        response_model=Numbered,
        responses=READ_ERRORS | NOT_FOUND,
    )
    async def policy(request: Request, version: str) -> Response:
        """One policy, whole."""

        async def answer() -> Mapping[str, Any]:
            sidecar = read(request)
            if not version.isdecimal() or len(version) > 9:
                raise PolicyNotFoundError("there is no such policy; versions are whole numbers")
            found = sidecar.policies.configured.policy
            if int(version) != 0:
                found = await asyncio.to_thread(sidecar.keeper.store.policy, int(version))
            data = shown(found, whole=may_change(access, request))
            return data | {"excluded_users": len(found.excluded.users)}

        return await guarded(answer())


def _add_changing(app: APIRouter, access: Access, metrics: tuple[str, ...]) -> None:
    def operator(request: Request) -> Identity:
        return operator_of(access, request)

    reported = plain_schema(MetricReport)
    reported["properties"]["metric"]["enum"] = list(metrics)

    def described(model: type[BaseModel]) -> dict[str, Any]:
        return json_body(plain_schema(model))

    @app.post(
        "/v1/policies",
        status_code=201,
        response_model=Accepted,
        responses=CHANGE_ERRORS,
        openapi_extra=described(Change),
    )
    async def apply(request: Request) -> Response:
        """Write a policy under the next number and put it in force: here now, everywhere within a second."""

        async def answer() -> Mapping[str, Any]:
            author = operator(request)
            change = await read_model(request, Change)
            keeper = _sidecar(request).keeper
            apply_it: Callable[..., InForce] = keeper.apply
            name = author_of(author, change.author)
            return accepted(await asyncio.to_thread(apply_it, change, author=name))

        return await guarded(answer(), 201)

    @app.post(
        "/v1/policy/rollback",
        response_model=Accepted,
        responses=CHANGE_ERRORS | NOT_FOUND,
        openapi_extra=described(Return),
    )
    async def roll_back(request: Request) -> Response:
        """Put the policy before the one in force, or a given one, in force again."""

        async def answer() -> Mapping[str, Any]:
            author = operator(request)
            back = await read_model(request, Return)
            name = author_of(author, back.author)
            return accepted(await asyncio.to_thread(_sidecar(request).keeper.go_back, back, author=name))

        return await guarded(answer())

    @app.post(
        "/v1/policy/guardrail-metrics",
        response_model=Reported,
        responses=CHANGE_ERRORS,
        openapi_extra=json_body(reported),
    )
    async def report(request: Request) -> Response:
        """Report a guardrail metric of the ramped arm; beyond its limit it ends the ramp at once."""

        async def answer() -> Mapping[str, Any]:
            operator(request)
            given = await read_model(request, MetricReport)
            sidecar = _sidecar(request)
            if given.metric not in metrics:
                raise PolicyError(f"metric: {given.metric[:64]!r} is none of {', '.join(metrics)}")
            if not sidecar.policies.watch.report(given):
                version = sidecar.policies.snapshot.policy.version
                raise PolicyConflictError(
                    f"policy {given.policy_version} is not being ramped; policy {version} is in force"
                )
            crossed = await asyncio.to_thread(sidecar.keeper.guard)
            return {
                "policy_version": sidecar.policies.snapshot.policy.version,
                "rolled_back": crossed is not None,
                "reason": None if crossed is None else crossed.reason,
            }

        return await guarded(answer())
