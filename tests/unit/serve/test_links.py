"""What is believed of a server after a call to it has failed, and of a model of another run."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from serve.api import create_app
from serve.decide import Decision, Source, ValueAnswer, static
from serve.fakes import FakeValueClient
from serve.fanout import Clock
from serve.links import ValueLinks
from serve.metrics import Metrics
from serve.server_link import ServerLink
from serve.sidecar import Sidecar
from tests.support.surfaces import small_surface_data
from tests.unit.serve.asgi import running
from tests.unit.serve.support import STATE, SURFACE, body, config, rig
from triton_models.errors import UpstreamUnavailableError
from triton_models.surface import Surface
from triton_models.tensors import state_specs

GONE = UpstreamUnavailableError("gone")


class SlowToDescribe(FakeValueClient):
    """Its parameters arrive when ``described`` is set."""

    described: asyncio.Event

    async def parameters(self) -> dict[str, str]:
        await self.described.wait()
        return await super().parameters()


@dataclass
class FakeClock:
    now_s: float = 1000.0

    def __call__(self) -> float:
        return self.now_s


def links_of(client: FakeValueClient, *, clock: Clock = time.perf_counter) -> ValueLinks:
    settings = config(value_network={"budget_ms": 10.0}).value_network
    return ValueLinks(SURFACE, settings, [client], Metrics(SURFACE), clock=clock)


def opened(links: ValueLinks, link: ServerLink) -> None:
    for _ in range(3):
        links.report(link, "failed", epoch=link.breaker.epoch, why="gone")
    assert link.state == "open"
    assert links.pick() is None


async def until_admitted(links: ValueLinks, link: ServerLink, clock: FakeClock) -> None:
    for _ in range(10):
        clock.now_s += await links.check(link)
        if link.breaker.admits:
            return
    raise AssertionError(link)


@pytest.mark.parametrize(
    "trouble",
    [
        {"error": GONE},
        {"error": RuntimeError("a bug of a library")},
        {"answer": ValueAnswer(weights_W=np.ones(2), action=4, values_M=np.ones(2))},
    ],
)
def test_after_failures_parameters_are_not_enough(trouble: dict[str, object]) -> None:
    async def main() -> None:
        client, clock = FakeValueClient(SURFACE, action=4), FakeClock()
        links = links_of(client, clock=clock)
        (link,) = links.links
        await links.check(link)
        assert (link.state, client.calls) == ("verified", [])
        opened(links, link)
        for name, value in trouble.items():
            setattr(client, name, value)
        for _ in range(3):
            clock.now_s += await links.check(link)
            assert (link.link, link.state) == ("verified", "open")
        assert client.calls
        client.error = client.answer = None
        await until_admitted(links, link, clock)
        assert links.pick() is link
        tensors, scalarization, _ = client.calls[-1]
        assert {name: array.shape for name, array in tensors.items()} == {
            spec.name: spec.shape for spec in state_specs(SURFACE)
        }
        assert scalarization.tolist() == [0.5, 0.5]
        trials = len(client.calls)
        await links.check(link)
        assert len(client.calls) == trials, "a server that works is not tried again"

    asyncio.run(main())


def test_a_probe_that_is_late_keeps_it_open_and_is_waited_out() -> None:
    async def main() -> None:
        client, clock = FakeValueClient(SURFACE, action=4), FakeClock()
        links = links_of(client, clock=clock)
        (link,) = links.links
        await links.check(link)
        opened(links, link)
        clock.now_s += await links.check(link)
        client.gate = asyncio.Event()
        probing = asyncio.create_task(links.check(link))
        await asyncio.sleep(0.1)
        assert (len(client.calls), link.breaker.kind, probing.done()) == (1, "open", False)
        assert "no answer within 10 ms" in links.describe()[0]["detail"]
        client.gate.set()
        await probing
        await until_admitted(links, link, clock)

    asyncio.run(main())


def test_a_server_with_one_late_call_is_looked_at_and_ejected_if_it_is_stuck() -> None:
    async def main() -> None:
        client = FakeValueClient(SURFACE, action=4)
        breaker = {"stuck_s": 0.05, "probe_s": 0.01, "open_s": 0.02}
        settings = config(value_network={"budget_ms": 5.0, "breaker": breaker})
        links = ValueLinks(SURFACE, settings.value_network, [client], Metrics(SURFACE))
        (link,) = links.links
        await links.start()
        links.report(link, "late", epoch=link.breaker.epoch)
        while not client.calls:
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.1)
        assert (link.state, len(client.calls)) == ("verified", 1), "slow is not stuck, and one look is enough"
        client.gate = asyncio.Event()
        links.report(link, "late", epoch=link.breaker.epoch)
        while link.state == "verified":
            await asyncio.sleep(0.005)
        assert links.describe()[0]["detail"] == "no answer within 0.05 s"
        assert len(client.calls) == 2
        client.gate.set()
        while link.state != "verified":
            await asyncio.sleep(0.005)
        await links.stop()

    asyncio.run(main())


def test_a_check_begun_before_failures_does_not_bring_the_server_back() -> None:
    async def main() -> None:
        client = SlowToDescribe(SURFACE)
        client.described = asyncio.Event()
        links = links_of(client)
        (link,) = links.links
        client.described.set()
        await links.check(link)
        client.described.clear()
        stale = asyncio.create_task(links.check(link))
        await asyncio.sleep(0)
        opened(links, link)
        client.described.set()
        await stale
        assert (link.link, link.state, links.pick()) == ("verified", "open", None)

    asyncio.run(main())


def test_a_model_of_another_surface_that_took_the_place_is_named() -> None:
    other = small_surface_data()
    other["controlled"][1]["maximum"] = 31

    async def main() -> None:
        client, clock = FakeValueClient(SURFACE), FakeClock()
        links = links_of(client, clock=clock)
        (link,) = links.links
        await links.check(link)
        opened(links, link)
        client.served = Surface.from_dict(other)
        for _ in range(2):
            clock.now_s += await links.check(link)
        assert (link.state, links.overall, client.calls) == ("mismatch", "mismatch", [])

    asyncio.run(main())


def test_a_dead_model_whose_server_answers_costs_three_requests_at_most() -> None:
    async def main() -> None:
        client = FakeValueClient(SURFACE, action=4, error=GONE)
        breaker = {"open_s": 0.01, "open_limit_s": 0.02, "probe_s": 0.005}
        async with rig(config(value_network={"breaker": breaker}), value=client) as r:
            reasons = []
            for _ in range(10):
                reasons.append((await r.rank())["reason"])
                await asyncio.sleep(0.02)
            asked = [tensors for tensors, _, _ in client.calls if tensors["user_embedding"].any()]
            assert 1 <= len(asked) <= 3, "the watcher's own calls count as well"
            assert reasons == ["unavailable"] * len(asked) + ["breaker_open"] * (10 - len(asked))
            assert len(client.calls) > 5, "it is tried again and again"
            text = (await r.client.get("/metrics")).body.decode()
            labels = 'address="fake-value-network",upstream="value_network"'
            assert f"puts_breaker_state{{{labels}}} 0.0" not in text
            client.error = None
            async with asyncio.timeout(60):
                while (await r.rank())["reason"] is not None:
                    await asyncio.sleep(0.01)
            text = (await r.client.get("/metrics")).body.decode()
            assert f"puts_breaker_state{{{labels}}} 0.0" in text

    asyncio.run(main())


@pytest.mark.parametrize("route", ["rank", "weights"])
def test_once_a_stuck_server_is_known_no_request_waits_for_it(route: str) -> None:
    async def main() -> None:
        client = FakeValueClient(SURFACE, action=4, gate=asyncio.Event())
        settings = config(value_network={"budget_ms": 100.0, "breaker": {"stuck_s": 60.0}})
        async with rig(settings, value=client) as r:
            answers = []
            for _ in range(12):
                data = body() if route == "rank" else {"state": STATE}
                answers.append((await r.client.post(f"/v1/{route}", data)).json())
            reasons = [answer["reason"] for answer in answers]
            assert reasons == ["late"] * 8 + ["breaker_open"] * 4
            assert min(answer["timings_ms"]["total"] for answer in answers[:8]) >= 100
            assert min(answer["timings_ms"]["total"] for answer in answers[8:]) < 50
            assert client.gate is not None
            client.gate.set()

    asyncio.run(main())


def test_a_stuck_server_is_ejected_and_the_others_take_over() -> None:
    async def main() -> None:
        stuck = FakeValueClient(SURFACE, action=0, name="stuck", gate=asyncio.Event())
        good = [FakeValueClient(SURFACE, action=a, name=f"good{a}", delay_s=0.001) for a in (1, 2)]
        network = {"budget_ms": 200.0, "max_in_flight": 3, "breaker": {"late": 3}}
        settings = config(ranker=None, value_network=network)
        app = create_app(settings, lambda c: Sidecar(c, value_clients=[stuck, *good]))
        async with running(app) as client:

            async def ask() -> Any:
                return (await client.post("/v1/weights", {"state": STATE})).json()

            answers = [await ask() for _ in range(40)]
            reasons = [answer["reason"] for answer in answers]
            asked = [tensors for tensors, _, _ in stuck.calls if tensors["user_embedding"].any()]
            assert 1 <= reasons.count("late") == len(asked) <= 3
            assert set(reasons[-20:]) == {None}
            assert {answer["action"] for answer in answers[-20:]} == {1, 2}
            assert (await client.get("/readyz")).json()["degraded"] is None
            assert stuck.gate is not None
            stuck.gate.set()
            while not all(link.breaker.admits for link in app.state.sidecar.links.links):
                await asyncio.sleep(0.02)
            assert 0 in {(await ask())["action"] for _ in range(6)}

    asyncio.run(main())


def test_the_end_lets_a_trial_call_end() -> None:
    async def main() -> None:
        client = FakeValueClient(SURFACE, gate=asyncio.Event())
        links = links_of(client)
        (link,) = links.links
        await links.start()
        opened(links, link)
        while not client.calls:
            await asyncio.sleep(0.01)
        (trial,) = links._trials
        ending = asyncio.create_task(links.stop())
        await asyncio.sleep(0.05)
        assert not trial.done()
        assert client.gate is not None
        client.gate.set()
        await ending
        assert not trial.cancelled()

    asyncio.run(main())


def test_a_model_of_another_run_is_used_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    async def main(expected: str | None) -> tuple[object, object, int]:
        caplog.clear()
        async with rig(config(expected_run_id=expected, value_network={"recheck_s": 0.01})) as r:
            assert (await r.rank())["source"] == "value_network"
            await asyncio.sleep(0.1)
            network = (await r.client.get("/readyz")).json()["value_network"][0]
        warnings = [record for record in caplog.records if "chosen for run" in record.message]
        return network["run_id_expected"], network["run_id_mismatch"], len(warnings)

    with caplog.at_level(logging.WARNING):
        assert asyncio.run(main("run-a")) == ("run-a", True, 1)
        assert asyncio.run(main("fake")) == ("fake", False, 0)
        assert asyncio.run(main(None)) == (None, False, 0)


def test_a_decision_carries_the_run_of_the_version_that_chose() -> None:
    """The model is rolled out between two looks at its parameters, which are 5 s apart."""

    async def main() -> None:
        client = FakeValueClient(SURFACE, action=4, run_id="old")
        async with rig(config(), value=client) as r:
            links = r.sidecar.links
            (link,) = links.links

            def decided(version: str, source: Source = "value_network") -> Decision:
                return replace(static(SURFACE), source=source, version=version)

            assert links.run_of(link, decided("1")) == "old"
            client.version, client.run_id = "2", "new"
            assert links.run_of(link, decided("2")) is None, "not known yet: no other run's name"
            async with asyncio.timeout(2):
                while (found := links.run_of(link, decided("2"))) is None:
                    await asyncio.sleep(0.005)
            assert found == "new"
            assert links.run_of(link, decided("1")) == "old", "an answer from before the switch"
            assert links.run_of(link, decided("", "static")) is None
            client.version = ""
            await links.check(link)
            link.wake.clear()
            assert links.run_of(link, decided("")) is None, "the server does not say which version chose"
            assert links.run_of(link, decided("3")) is None
            assert not link.wake.is_set(), "its configuration names no version: asking again tells no more"

    asyncio.run(main())


def test_versions_of_another_repository_are_told_apart() -> None:
    async def main() -> None:
        client = FakeValueClient(SURFACE, action=4, version="3", run_id="old")
        links = links_of(client)
        (link,) = links.links
        await links.check(link)
        client.version = "4"
        await links.check(link)
        assert link.runs == {"3": "old", "4": "old"}
        client.run_id = "new"
        await links.check(link)
        assert link.runs == {"4": "new"}, "whose version 3 is there no longer"
        links.report(link, "failed", epoch=link.breaker.epoch, why="gone")
        assert link.runs == {}, "who answers next may be another server"

    asyncio.run(main())
