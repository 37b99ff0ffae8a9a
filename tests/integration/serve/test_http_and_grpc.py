"""Both ways to a real tritonserver: the same answers, the same refusals, the same description."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serve.clients import TritonRankerClient, TritonValueClient, ValueQuestion
from serve.config import RankerConfig, ValueNetworkConfig
from tests.integration.serve.test_stack import request
from triton_models.encoding import encode_state
from triton_models.errors import UpstreamRefusedError, UpstreamUnavailableError
from triton_models.server import EmbeddedServer
from triton_models.surface import Surface


@pytest.fixture(scope="module")
def value_server(repositories: tuple[Path, Path]) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(repositories[0]) as server:
        yield server


@pytest.fixture(scope="module")
def ranker_server(repositories: tuple[Path, Path]) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(repositories[1]) as server:
        yield server


def addresses_of(server: EmbeddedServer) -> tuple[str, str]:
    return server.grpc_address, f"http://{server.http_address}"


@asynccontextmanager
async def value_client(surface: Surface, address: str, **settings: Any) -> AsyncIterator[TritonValueClient]:
    config = ValueNetworkConfig.model_validate({"addresses": [address], **settings})
    client = TritonValueClient(surface, config, address)
    try:
        yield client
    finally:
        await client.close()


def test_the_value_network_says_the_same(value_server: EmbeddedServer, homefeed: Surface) -> None:
    tensors = encode_state(homefeed, request(homefeed)["state"])
    lambdas = [homefeed.scalarization([1.0 - a, a]) for a in (0.1, 0.3, 0.6)]
    questions = [ValueQuestion(tensors, lam, {}) for lam in lambdas]
    wrong = ValueQuestion(tensors, np.array([np.nan, 1.0]), {})

    async def main() -> None:
        said: list[Any] = []
        for address in addresses_of(value_server):
            async with value_client(homefeed, address) as client:
                parameters = await client.parameters()
                answers = await client.choose_many(questions)
                assert await client.ready()
                for asked in ([wrong], [questions[0], wrong]):
                    with pytest.raises(UpstreamRefusedError, match="scalarization"):
                        await client.choose_many(asked)
                numbers = [(a.action, a.weights_W.tolist(), a.values_M.tolist(), a.version) for a in answers]
                said.append((parameters, client.max_rows, client.described_version, numbers))
            async with value_client(homefeed, address, model="absent") as client:
                assert not await client.ready()
                for call in (client.parameters(), client.choose_many(questions)):
                    with pytest.raises(UpstreamUnavailableError):
                        await call
        assert said[0] == said[1]
        assert said[0][1] > 1
        assert said[0][2] == "1"

    asyncio.run(main())


def test_the_ranker_says_the_same(ranker_server: EmbeddedServer, homefeed: Surface) -> None:
    body = request(homefeed)
    tensors = encode_state(homefeed, body["state"])

    async def main() -> None:
        scores = []
        for address in addresses_of(ranker_server):
            client = TritonRankerClient(homefeed, RankerConfig(addresses=(address,)), address)
            scores.append(await client.score(tensors, body["candidates"], {}))
            await client.close()
        np.testing.assert_array_equal(*scores)

    asyncio.run(main())


def test_a_server_that_was_away(repositories: tuple[Path, Path], homefeed: Surface) -> None:
    tensors = encode_state(homefeed, request(homefeed)["state"])
    lam = homefeed.scalarization([0.7, 0.3])

    async def main(server: EmbeddedServer) -> None:
        address = f"http://{server.http_address}"
        async with value_client(homefeed, address, rpc_timeout_s=2.0, budget_ms=100.0) as client:
            before = await client.choose(tensors, lam, {})
            assert server.pid is not None
            os.kill(server.pid, signal.SIGSTOP)
            asked = [asyncio.create_task(client.choose(tensors, lam, {})) for _ in range(3)]
            await asyncio.sleep(0.3)
            assert not any(task.done() for task in asked)
            os.kill(server.pid, signal.SIGCONT)
            assert [answer.action for answer in await asyncio.gather(*asked)] == [before.action] * 3
            server.stop()
            with pytest.raises(UpstreamUnavailableError):
                await client.choose(tensors, lam, {})
            server.start()
            assert (await client.choose(tensors, lam, {})).action == before.action

    with EmbeddedServer(repositories[0]) as server:
        asyncio.run(main(server))
