"""Several rankers: a dead or stuck one is ejected, probed with what was answered before, and comes back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

from serve.api import create_app
from serve.fakes import FakeRankerClient, FakeValueClient
from serve.rankers import Question
from serve.sidecar import Sidecar
from tests.unit.serve.asgi import AsgiClient, running
from tests.unit.serve.support import SURFACE, body, config
from triton_models.errors import UpstreamInvalidError, UpstreamRefusedError, UpstreamUnavailableError

DOWN = UpstreamUnavailableError("down")
FAST = {"open_s": 0.02, "open_limit_s": 0.04, "probe_s": 0.005}


def ranker(name: str, **changes: Any) -> FakeRankerClient:
    return FakeRankerClient(len(SURFACE.heads), name=name, **changes)


@asynccontextmanager
async def rankers(*clients: FakeRankerClient, **settings: Any) -> AsyncIterator[tuple[AsgiClient, Sidecar]]:
    made = config(ranker={"breaker": FAST, **settings})
    value = FakeValueClient(SURFACE, action=4)
    app = create_app(made, lambda c: Sidecar(c, value_clients=[value], ranker_clients=list(clients)))
    async with running(app) as client:
        yield client, app.state.sidecar


async def statuses(client: AsgiClient, count: int) -> list[int]:
    return [(await client.post("/v1/rank", body())).status for _ in range(count)]


def test_a_dead_one_costs_no_ranking_and_comes_back() -> None:
    async def main() -> None:
        dead, good = ranker("dead", error=DOWN), ranker("good")
        async with rankers(dead, good) as (client, sidecar):
            assert await statuses(client, 20) == [200] * 20
            assert len(dead.calls) >= 3
            assert sum(len(candidates) == 10 for _, candidates, _ in dead.calls) == 3, "then it is ejected"
            while len(dead.calls) < 5:
                await asyncio.sleep(0.01)
            assert dead.calls[-1][1] == [100], "probed with one candidate of a request that was answered"
            text = (await client.get("/metrics")).body.decode()
            assert "puts_ranker_retries_total 3.0" in text
            dead.error = None
            assert sidecar.rankers is not None
            while not all(link.breaker.admits for link in sidecar.rankers.links):
                await asyncio.sleep(0.01)
            asked = len(dead.calls)
            assert await statuses(client, 4) == [200] * 4
            assert len(dead.calls) == asked + 2

    asyncio.run(main())


def test_a_stuck_one_is_ejected() -> None:
    async def main() -> None:
        stuck, good = ranker("stuck", gate=asyncio.Event()), ranker("good")
        settings = {"timeout_ms": 300, "breaker": {**FAST, "late": 2}}
        async with rankers(stuck, good, **settings) as (client, _):
            answered = [await asyncio.gather(*(client.post("/v1/rank", body()) for _ in range(4)))]
            assert {answer.status for answer in answered[0]} == {200, 503}
            assert await statuses(client, 20) == [200] * 20
            ready = (await client.get("/readyz")).json()
            assert [state["breaker"] == "closed" for state in ready["ranker"]] == [False, True]
            assert stuck.gate is not None
            stuck.gate.set()

    asyncio.run(main())


def test_one_alone_and_all_together_are_asked_whatever_happened() -> None:
    async def main() -> None:
        alone = ranker("alone", error=DOWN)
        async with rankers(alone) as (client, _):
            assert await statuses(client, 10) == [503] * 10
            assert len(alone.calls) == 10
            alone.error = None
            assert await statuses(client, 1) == [200]
            (state,) = (await client.get("/readyz")).json()["ranker"]
            assert state["breaker"] == "closed", "nobody heeds it, so it must not say otherwise for ever"
        both = [ranker("a", error=DOWN), ranker("b", error=DOWN)]
        slow = {"open_s": 60.0, "open_limit_s": 60.0, "relapse_limit_s": 60.0}
        async with rankers(*both, breaker=slow) as (client, _):
            assert set(await statuses(client, 10)) == {503}
            both[1].error = None
            assert 200 in await statuses(client, 2)

    asyncio.run(main())


def test_a_refusal_is_not_sent_twice_and_ejects_nobody() -> None:
    async def main() -> None:
        picky, good = ranker("picky", error=UpstreamRefusedError("INVALID_ARGUMENT: shape")), ranker("good")
        async with rankers(picky, good) as (client, _):
            assert sorted(await statuses(client, 20)) == [200] * 10 + [503] * 10
            refused = await client.post("/v1/rank", body())
            refused = refused if refused.status == 503 else await client.post("/v1/rank", body())
            assert refused.json()["error"]["type"] == "ranker_refused"
            ready = (await client.get("/readyz")).json()
            assert [state["breaker"] for state in ready["ranker"]] == ["closed", "closed"]

    asyncio.run(main())


def test_one_that_answers_rubbish_stays_ejected_until_it_answers_right() -> None:
    async def main() -> None:
        odd, good = ranker("odd", error=UpstreamInvalidError("NaN")), ranker("good")
        async with rankers(odd, good) as (client, sidecar):
            assert (await statuses(client, 20)).count(503) == 3
            probes = len(odd.calls)
            while len(odd.calls) < probes + 3:
                await asyncio.sleep(0.01)
            assert sidecar.rankers is not None
            assert not sidecar.rankers.links[0].breaker.admits
            odd.error = None
            while not sidecar.rankers.links[0].breaker.admits:
                await asyncio.sleep(0.01)

    asyncio.run(main())


def test_readiness_waits_for_all_rankers_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        gate, asked = asyncio.Event(), []

        class Hangs(FakeRankerClient):
            async def ready(self) -> bool:
                asked.append(self.name)
                await gate.wait()
                return True

        hanging = [Hangs(len(SURFACE.heads), name=name) for name in ("a", "b")]
        async with rankers(*hanging, ranker("good")) as (client, _):
            looking = asyncio.create_task(client.get("/readyz"))
            async with asyncio.timeout(60):
                while len(asked) < 2:  # the second is asked while the first has not answered
                    await asyncio.sleep(0.001)
            answer = await looking
            assert answer.status == 200
            assert [state["ready"] for state in answer.json()["ranker"]] == [False, False, True]
            gate.set()

    monkeypatch.setattr("serve.sidecar.READY_S", 0.2)
    asyncio.run(main())


def test_the_first_candidate_alone_with_its_features() -> None:
    raw = np.arange(6, dtype=np.float32).reshape(3, 2).tobytes()
    question = Question({}, [7, 8, 9], {"traceparent": "x"}, {"f": memoryview(raw)})
    first = question.first()
    assert (first.candidates, first.headers) == ([7], {})
    assert np.frombuffer(first.features["f"], np.float32).tolist() == [0.0, 1.0]
