"""Two real tritonservers behind one sidecar: one is stopped, continued, killed, replaced. Requests go on."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serve.api import create_app
from serve.clients import TritonValueClient, ValueQuestion
from serve.config import SidecarConfig, ValueNetworkConfig
from serve.fakes import FakeRankerClient
from serve.sidecar import Sidecar
from tests.integration.serve.test_stack import request
from tests.unit.serve.asgi import AsgiClient, running
from triton_models.encoding import encode_state
from triton_models.server import EmbeddedServer
from triton_models.surface import Surface

BACK_WITHIN_S = 5.0
BUDGET_MS = 250.0


@pytest.fixture(scope="module")
def servers(repositories: tuple[Path, Path]) -> Iterator[list[EmbeddedServer]]:
    with EmbeddedServer(repositories[0]) as first, EmbeddedServer(repositories[0]) as second:
        yield [first, second]


class Load:
    """Requests one after the other, to both routes in turn; every one must be answered."""

    def __init__(self, client: AsgiClient, surface: Surface) -> None:
        self._client = client
        self._body = request(surface)
        self._state = {"state": self._body["state"]}
        self._count = 0

    async def one(self) -> dict[str, Any]:
        self._count += 1
        path, body = ("/v1/rank", self._body) if self._count % 2 else ("/v1/weights", self._state)
        answer = await self._client.post(path, body)
        assert answer.status == 200, answer.body
        found: dict[str, Any] = answer.json()
        return found

    async def until(self, condition: Callable[[], bool], within_s: float) -> tuple[Counter[str], float]:
        """Ask until it holds: reasons counted, seconds."""
        began, reasons = time.monotonic(), Counter[str]()
        while not condition():
            assert time.monotonic() - began < within_s, reasons
            reasons[str((await self.one())["reason"])] += 1
            await asyncio.sleep(0.002)
        return reasons, time.monotonic() - began


def test_states_that_share_a_call_get_the_answers_they_get_alone(
    servers: list[EmbeddedServer], homefeed: Surface
) -> None:
    address = servers[0].grpc_address
    random = np.random.default_rng(7)
    states = [
        {
            **request(homefeed)["state"],
            "user_embedding": random.normal(size=homefeed.state.user_embedding).tolist(),
        }
        for _ in range(40)
    ]
    lambdas = random.dirichlet(np.ones(len(homefeed.objectives)), size=len(states))

    async def main() -> None:
        config = ValueNetworkConfig(addresses=(address,))
        client = TritonValueClient(homefeed, config, address)
        await client.parameters()
        assert client.max_rows >= len(states), "the served model's max_batch_size"
        asked = [
            ValueQuestion(encode_state(homefeed, state), lam, {})
            for state, lam in zip(states, lambdas, strict=True)
        ]
        together = await client.choose_many(asked)
        alone = [await client.choose(q.tensors, q.scalarization_M, {}) for q in asked]
        assert [answer.action for answer in together] == [answer.action for answer in alone]
        assert len({answer.action for answer in together}) > 1, "all the same: the test shows nothing"
        for one, other in zip(together, alone, strict=True):
            np.testing.assert_array_equal(one.weights_W, other.weights_W)
            np.testing.assert_allclose(one.values_M, other.values_M, rtol=1e-5)
        await client.close()

    asyncio.run(main())


@pytest.mark.parametrize("way", ["grpc", "http"])
def test_one_of_two_is_stopped_continued_killed_and_replaced(
    servers: list[EmbeddedServer], homefeed: Surface, way: str
) -> None:
    addresses = [s.grpc_address if way == "grpc" else f"http://{s.http_address}" for s in servers]
    config = SidecarConfig.from_dict(
        {
            "surface": homefeed.to_dict(),
            "value_network": {
                "addresses": addresses,
                "budget_ms": BUDGET_MS,
            },
            "ranker": {"addresses": ["fake:1"]},
        }
    )
    ranker = FakeRankerClient(len(homefeed.heads))
    app = create_app(config, lambda c: Sidecar(c, ranker_clients=[ranker]))

    async def main() -> None:
        async with running(app) as client:
            load = Load(client, homefeed)
            first, second = app.state.sidecar.links.links
            await load.until(lambda: first.link == second.link == "verified", 20)
            for _ in range(10):
                assert (await load.one())["reason"] is None

            os.kill(servers[0].pid, signal.SIGSTOP)
            try:
                reasons, _ = await load.until(lambda: not first.breaker.admits, 30)
                assert set(reasons) <= {"None", "late"}
                assert 1 <= reasons["late"] <= config.value_network.breaker.late
                # Ejected: the other takes over, and nobody waits for the stopped one.
                after = [await load.one() for _ in range(40)]
                assert {answer["reason"] for answer in after} == {None}
            finally:
                os.kill(servers[0].pid, signal.SIGCONT)
            reasons, _ = await load.until(lambda: first.breaker.admits, BACK_WITHIN_S)
            assert set(reasons) <= {"None"}, "coming back costs no request anything"

            for server in servers:
                os.kill(server.pid, signal.SIGKILL)
            reasons, _ = await load.until(lambda: not (first.breaker.admits or second.breaker.admits), 20)
            assert set(reasons) <= {"None", "unavailable"}
            began = time.monotonic()
            after = [await load.one() for _ in range(20)]
            assert {answer["reason"] for answer in after} == {"breaker_open"}
            assert (time.monotonic() - began) / len(after) < BUDGET_MS / 1000.0 / 5, "nobody waits"

            restarting = asyncio.get_running_loop().run_in_executor(None, servers[1].restart)
            reasons, _ = await load.until(restarting.done, 60)
            assert set(reasons) <= {"None", "breaker_open"}
            await load.until(lambda: second.breaker.admits, BACK_WITHIN_S)
            assert (await load.one())["reason"] is None
            text = (await client.get("/metrics")).body.decode()
            labels = f'address="{addresses[1]}",upstream="value_network"'
            assert f"puts_breaker_state{{{labels}}} 0.0" in text
            assert 'to="open",upstream="value_network"' in text

    try:
        asyncio.run(main())
    finally:
        servers[0].restart()
