"""Requests do not ask Ray to watch for their caller."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from ray.serve._private.http_util import parse_disconnect_disabled_header

from serve.ray_ingress import middlewares


@pytest.mark.parametrize("given", [[], [(b"x-request-disconnect-disabled", b"?0")]])
def test_ray_is_told_not_to_watch_for_a_caller_that_hangs_up(given: list[tuple[bytes, bytes]]) -> None:
    seen: list[dict[str, Any]] = []

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        seen.append(scope)

    (middleware,) = middlewares()
    wrapped: Any = middleware.cls(app)
    asyncio.run(wrapped({"type": "http", "headers": given}, None, None))
    assert parse_disconnect_disabled_header(dict(seen[0]["headers"]))
