"""What is believed of a server after a call to it has failed, and of a model of another run."""

from __future__ import annotations

import asyncio
import logging

import numpy as np
import pytest

from serve.decide import ValueAnswer
from serve.fakes import FakeValueClient
from serve.links import ValueLinks
from serve.metrics import Metrics
from tests.unit.serve.support import SURFACE, config, rig
from triton_models.errors import UpstreamUnavailableError
from triton_models.tensors import state_specs

GONE = UpstreamUnavailableError("gone")


class SlowToDescribe(FakeValueClient):
    """Its parameters arrive when ``described`` is set."""

    described: asyncio.Event

    async def parameters(self) -> dict[str, str]:
        await self.described.wait()
        return await super().parameters()


def links_of(client: FakeValueClient, expected_run_id: str | None = None) -> ValueLinks:
    network = config().value_network
    return ValueLinks(SURFACE, network, [client], Metrics(SURFACE), expected_run_id=expected_run_id)


@pytest.mark.parametrize(
    "trouble",
    [
        {"error": GONE},
        {"error": RuntimeError("a bug of a library")},
        {"answer": ValueAnswer(weights_W=np.ones(2), action=4, values_M=np.ones(2))},
    ],
)
def test_after_a_failure_parameters_are_not_enough(trouble: dict[str, object]) -> None:
    async def main() -> None:
        client = FakeValueClient(SURFACE, action=4)
        links = links_of(client)
        (link,) = links.links
        await links.check(link)
        assert (link.link, client.calls) == ("verified", [])
        links.report_failure(link, GONE, generation=link.generation)
        assert links.pick() is None
        for name, value in trouble.items():
            setattr(client, name, value)
        for _ in range(2):
            await links.check(link)
            assert link.link == "unreachable"
        client.error = client.answer = None
        await links.check(link)
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


def test_a_check_begun_before_a_failure_says_nothing_after_it() -> None:
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
        links.report_failure(link, GONE, generation=link.generation)
        client.described.set()
        await stale
        assert (link.link, link.detail) == ("unreachable", "gone")

    asyncio.run(main())


def test_a_call_begun_before_the_recovery_says_nothing_after_it() -> None:
    async def main() -> None:
        links = links_of(FakeValueClient(SURFACE))
        (link,) = links.links
        await links.check(link)
        begun = link.generation
        links.report_failure(link, GONE, generation=begun)
        await links.check(link)
        links.report_failure(link, GONE, generation=begun)
        assert link.link == "verified"

    asyncio.run(main())


def test_a_dead_model_whose_server_answers_costs_one_request() -> None:
    async def main() -> None:
        client = FakeValueClient(SURFACE, action=4, error=GONE)
        async with rig(config(value_network={"retry_s": 0.01}), value=client) as r:
            reasons = []
            for _ in range(10):
                reasons.append((await r.rank())["reason"])
                await asyncio.sleep(0.02)
            assert reasons == ["unavailable"] * 10
            asked = [tensors for tensors, _, _ in client.calls if tensors["user_embedding"].any()]
            assert len(asked) == 1
            assert len(client.calls) > 2, "it is tried again and again"
            client.error = None
            await asyncio.sleep(0.1)
            assert (await r.rank())["reason"] is None

    asyncio.run(main())


def test_the_end_lets_a_trial_call_end() -> None:
    async def main() -> None:
        client = FakeValueClient(SURFACE, gate=asyncio.Event())
        links = links_of(client)
        (link,) = links.links
        await links.start()
        links.report_failure(link, GONE, generation=link.generation)
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
