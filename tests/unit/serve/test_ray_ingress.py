"""What stands before Ray's own handling of a request in a replica that listens itself."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from ray.serve._private.http_util import parse_disconnect_disabled_header

from serve import ray_ingress
from serve.ray_ingress import hand_over, middlewares

Scope = dict[str, Any]


@pytest.fixture(autouse=True)
def nobody_handed_over() -> Iterator[None]:
    """Each test begins like a process in which no replica was made."""
    ray_ingress._handed_over = None
    yield
    ray_ingress._handed_over = None


class Seen:
    """An application that notes what it was asked, and holds each request until it is let go."""

    def __init__(self) -> None:
        self.scopes: list[Scope] = []
        self.at_work = 0
        self.most = 0
        self.go = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        self.at_work += 1
        self.most = max(self.most, self.at_work)
        await self.go.wait()
        self.at_work -= 1


def ingress(ray: Seen) -> Any:
    (middleware,) = middlewares()
    return middleware.cls(ray)


def request(path: str, headers: list[tuple[bytes, bytes]] | None = None, kind: str = "http") -> Scope:
    return {"type": kind, "path": path, "headers": headers or []}


async def ask(wrapped: Any, *scopes: Scope) -> None:
    await asyncio.gather(*(wrapped(scope, None, None) for scope in scopes))


@pytest.mark.parametrize("given", [[], [(b"x-request-disconnect-disabled", b"?0")]])
def test_ray_is_told_not_to_watch_for_a_caller_that_hangs_up(given: list[tuple[bytes, bytes]]) -> None:
    ray = Seen()
    ray.go.set()
    asyncio.run(ask(ingress(ray), request("/readyz", given)))
    assert parse_disconnect_disabled_header(dict(ray.scopes[0]["headers"]))


def test_only_the_hot_routes_go_past_ray() -> None:
    ray, ours = Seen(), Seen()
    ray.go.set()
    ours.go.set()
    hand_over(ours, max_ongoing_requests=8)
    paths = ["/v1/rank", "/v1/weights", "/v1/policies", "/metrics", "/-/healthz", "/v1/rank/"]
    asyncio.run(ask(ingress(ray), *map(request, paths)))
    assert [scope["path"] for scope in ours.scopes] == paths[:2]
    assert [scope["path"] for scope in ray.scopes] == paths[2:]


def test_what_is_no_http_request_is_rays() -> None:
    ray, ours = Seen(), Seen()
    ray.go.set()
    hand_over(ours, max_ongoing_requests=8)
    asyncio.run(ask(ingress(ray), request("/v1/rank", kind="websocket")))
    assert not ours.scopes
    assert ray.scopes == [request("/v1/rank", kind="websocket")]


def test_a_process_without_a_replica_of_ours_leaves_everything_to_ray() -> None:
    ray = Seen()
    ray.go.set()
    asyncio.run(ask(ingress(ray), request("/v1/rank")))
    assert len(ray.scopes) == 1


def test_no_more_requests_are_at_work_than_are_allowed_and_the_others_get_their_turn() -> None:
    ours = Seen()

    async def scenario() -> int:
        hand_over(ours, max_ongoing_requests=3)
        async with asyncio.TaskGroup() as group:
            group.create_task(ask(ingress(Seen()), *(request("/v1/rank") for _ in range(10))))
            for _ in range(5):
                await asyncio.sleep(0)
            begun = len(ours.scopes)
            ours.go.set()
        return begun

    assert asyncio.run(scenario()) == 3
    assert (len(ours.scopes), ours.most) == (10, 3)


def test_a_request_that_breaks_gives_its_place_back() -> None:
    async def broken(scope: Scope, receive: Any, send: Any) -> None:
        raise RuntimeError("a bug")

    async def scenario() -> None:
        hand_over(broken, max_ongoing_requests=1)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="a bug"):
                async with asyncio.timeout(5):
                    await ingress(Seen())(request("/v1/rank"), None, None)

    asyncio.run(scenario())
