"""A sidecar over fakes, and request bodies for the small surface."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from serve.api import create_app
from serve.config import SidecarConfig
from serve.fakes import FakeRankerClient, FakeValueClient
from serve.sidecar import Sidecar
from tests.support.surfaces import small_surface
from tests.unit.serve.asgi import AsgiClient, running

SURFACE = small_surface()

HISTORY = {"embedding": [[0.1, 0.2, 0.3], [0.0, 0.0, 1.0]], "action": ["save", "click"], "age_s": [60.0, 5.0]}
STATE = {
    "user_embedding": [0.1, -0.2, 0.3, 0.4],
    "history": HISTORY,
    "context": {"device": "phone", "daypart": "night"},
}


def config(**changes: Any) -> SidecarConfig:
    # A budget that no busy machine uses up: tests of lateness state their own.
    network = {"addresses": ["fake:1"], "retry_s": 0.05, "budget_ms": 5000.0}
    network |= changes.pop("value_network", {})
    ranker = changes.pop("ranker", {})
    data = {
        "surface": SURFACE.to_dict(),
        "value_network": network,
        "ranker": None if ranker is None else {"addresses": ["fake:2"], **ranker},
        "scalarization": [0.8, 0.2],
        **changes,
    }
    return SidecarConfig.from_dict(data)


def body(**changes: Any) -> dict[str, Any]:
    return {"state": STATE, "candidates": list(range(100, 110)), "k": 3, **changes}


@dataclass
class Rig:
    client: AsgiClient
    value: FakeValueClient
    ranker: FakeRankerClient
    sidecar: Sidecar

    async def rank(self, **changes: Any) -> Any:
        answer = await self.client.post("/v1/rank", body(**changes))
        assert answer.status == 200, answer.body
        return answer.json()


@asynccontextmanager
async def rig(
    settings: SidecarConfig | None = None,
    *,
    value: FakeValueClient | None = None,
    ranker: FakeRankerClient | None = None,
) -> AsyncIterator[Rig]:
    value = value or FakeValueClient(SURFACE, action=4)
    ranker = ranker or FakeRankerClient(len(SURFACE.heads))
    settings = settings or config()
    rankers = [ranker] if settings.ranker else []
    app = create_app(settings, lambda c: Sidecar(c, value_clients=[value], ranker_clients=rankers))
    async with running(app) as client:
        yield Rig(client, value, ranker, app.state.sidecar)
