"""Questions to one server share calls, no longer than they may wait, and nobody's answer is another's."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.clients import ValueQuestion
from serve.coalesce import Asked, Coalescer, Typical, linger_s
from serve.context import CURRENT, RequestContext
from serve.decide import ValueAnswer
from serve.fakes import FakeValueClient
from serve.metrics import Metrics
from tests.unit.serve.support import STATE, SURFACE, config, rig
from tests.unit.serve.test_fanout import metric, run
from triton_models.errors import UpstreamRefusedError, UpstreamUnavailableError

LONG_S = 30.0
TRACED = {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}
UNTRACED = {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"}


@dataclass
class Echo(FakeValueClient):
    """Answers each question with its own number; calls end when they are let."""

    let: asyncio.Event | None = None
    contexts: list[RequestContext | None] = field(default_factory=list)
    short: bool = False

    async def choose_many(self, questions: Sequence[ValueQuestion]) -> list[ValueAnswer]:
        self.rows.append(len(questions))
        self.contexts.append(CURRENT.get())
        if self.let is not None:
            await self.let.wait()
        if self.error is not None:
            raise self.error
        numbers = [int(q.tensors["number"][0]) for q in questions]
        answers = [ValueAnswer(weights_W=np.zeros(2), action=n, values_M=np.zeros(2)) for n in numbers]
        return answers[1:] if self.short else answers


def question(number: int, headers: dict[str, str] | None = None) -> ValueQuestion:
    return ValueQuestion({"number": np.array([number])}, np.array([0.5, 0.5]), headers or {})


def coalescer(client: FakeValueClient, *, limit_s: float = LONG_S, max_rows: int = 32) -> Coalescer:
    loop = asyncio.get_running_loop()
    return Coalescer(client, limit_s=limit_s, max_rows=max_rows, metrics=Metrics(SURFACE), clock=loop.time)


async def numbers(*asked: Asked) -> list[int]:
    return [(await one.answer).action for one in asked]


def test_who_may_wait_shares_a_call_and_gets_the_own_answer() -> None:
    async def main() -> None:
        client = Echo(SURFACE)
        c = coalescer(client)
        answers = [c.ask(question(n), linger_s=0.01) for n in range(5)]
        assert await numbers(*answers) == [0, 1, 2, 3, 4]
        assert client.rows == [5]

    run(main())


def test_who_may_not_wait_goes_at_once_and_takes_the_others_along() -> None:
    async def main() -> None:
        client = Echo(SURFACE)
        c = coalescer(client)
        patient = c.ask(question(1), linger_s=LONG_S)
        await asyncio.sleep(0)
        assert client.rows == []
        async with asyncio.timeout(10):
            assert await numbers(c.ask(question(2), linger_s=None), patient) == [2, 1]
        assert client.rows == [2]

    run(main())


def test_a_call_on_its_way_holds_nobody_longer_than_there_is_slack() -> None:
    async def main() -> None:
        client = Echo(SURFACE, let=asyncio.Event())
        c = coalescer(client)
        first = c.ask(question(0), linger_s=None)
        await asyncio.sleep(0.01)
        rest = [c.ask(question(n), linger_s=0.0) for n in (1, 2, 3)]
        await asyncio.sleep(0.01)
        assert client.rows == [1, 3], "no slack: sent although the first call is still on its way"
        assert c.in_flight == 2
        client.let.set()
        async with asyncio.timeout(10):
            assert await numbers(first, *rest) == [0, 1, 2, 3]
        await asyncio.sleep(0)
        assert c.in_flight == 0

    run(main())


def test_nobody_waits_longer_than_the_limit() -> None:
    async def main() -> None:
        client = Echo(SURFACE)
        c = coalescer(client, limit_s=0.02)
        async with asyncio.timeout(10):
            assert await numbers(c.ask(question(1), linger_s=LONG_S)) == [1]
        await c.close()

    run(main())


@pytest.mark.parametrize(
    ("limit_s", "max_rows", "served", "rows"),
    [(0.0, 32, 64, [3]), (0.01, 2, 64, [2, 1]), (0.01, 32, 2, [2, 1]), (LONG_S, 1, 64, [1, 1, 1])],
)
def test_calls_are_no_larger_than_they_may_be(
    limit_s: float, max_rows: int, served: int, rows: list[int]
) -> None:
    async def main() -> None:
        client = Echo(SURFACE, max_rows=served)
        c = coalescer(client, limit_s=limit_s, max_rows=max_rows)
        asked = [c.ask(question(n), linger_s=LONG_S) for n in range(3)]
        async with asyncio.timeout(10):
            assert await numbers(*asked) == [0, 1, 2]
        assert client.rows == rows

    run(main())


def test_a_recorded_trace_has_a_call_of_its_own() -> None:
    async def main() -> None:
        client = Echo(SURFACE)
        c = coalescer(client)
        asked = [c.ask(question(n, h), linger_s=0.01) for n, h in enumerate((UNTRACED, TRACED, UNTRACED))]
        assert await numbers(*asked) == [0, 1, 2]
        assert client.rows == [1, 2]

    run(main())


def test_a_shared_call_runs_under_no_requests_name() -> None:
    async def main() -> None:
        client = Echo(SURFACE)
        c = coalescer(client)
        CURRENT.set(RequestContext(request_id="r1"))
        await c.ask(question(0), linger_s=None).answer
        assert client.contexts == [None]

    run(main())


@pytest.mark.parametrize("trouble", ["error", "short"])
def test_a_failed_call_fails_for_all_that_share_it(trouble: str) -> None:
    async def main() -> None:
        client = Echo(SURFACE, short=trouble == "short")
        if trouble == "error":
            client.error = UpstreamUnavailableError("down")
        c = coalescer(client)
        asked = [c.ask(question(n), linger_s=0.0) for n in range(3)]
        outcomes = await asyncio.gather(*(one.answer for one in asked), return_exceptions=True)
        assert len({type(outcome) for outcome in outcomes}) == 1
        assert all(isinstance(outcome, Exception) for outcome in outcomes)
        assert c.typical.seen is False, "a failure says nothing of how long a call takes"

    run(main())


def test_a_refused_call_is_made_again_each_question_alone() -> None:
    @dataclass
    class Picky(Echo):
        async def choose_many(self, questions: Sequence[ValueQuestion]) -> list[ValueAnswer]:
            if any(q.tensors["number"][0] == 2 for q in questions):
                self.rows.append(len(questions))
                raise UpstreamRefusedError("INVALID_ARGUMENT: not two")
            return await super().choose_many(questions)

    async def main() -> None:
        client = Picky(SURFACE)
        c = coalescer(client)
        asked = [c.ask(question(n), linger_s=0.0) for n in range(4)]
        outcomes = await asyncio.gather(*(one.answer for one in asked), return_exceptions=True)
        assert [getattr(o, "action", type(o)) for o in outcomes] == [0, 1, UpstreamRefusedError, 3]
        assert client.rows == [4, 1, 1, 1, 1]

    run(main())


def test_the_breaker_hears_once_of_a_failed_call_that_many_shared() -> None:
    async def main() -> None:
        value = FakeValueClient(SURFACE, action=4)
        breaker = {"failures": 3, "late": 100, "minimum": 1000}
        async with rig(config(value_network={"breaker": breaker}), value=value) as r:
            await r.rank()
            link = r.sidecar.links.links[0]
            value.error = UpstreamUnavailableError("down")
            value.rows.clear()
            answers = await asyncio.gather(*(r.rank() for _ in range(6)))
            assert {answer["reason"] for answer in answers} == {"unavailable"}
            shared = max(value.rows)
            assert shared > 3, "they did not share a call: the test shows nothing"
            assert link.breaker.admits
            value.error = None
            text = (await r.client.get("/metrics")).body.decode()
            calls = metric(text, "puts_value_network_calls_total")
            assert metric(text, "puts_value_network_rows_total") > calls

    run(main())


@pytest.mark.parametrize("trouble", ["late", "rubbish"])
def test_one_late_or_wrong_call_that_many_shared_is_one(trouble: str) -> None:
    async def main() -> None:
        value = FakeValueClient(SURFACE, action=4)
        breaker = {"failures": 3, "late": 8, "minimum": 1000}
        settings = config(value_network={"breaker": breaker, "budget_ms": 200.0})
        async with rig(settings, value=value) as r:
            await r.rank()
            link = r.sidecar.links.links[0]
            value.rows.clear()
            if trouble == "late":
                value.gate = asyncio.Event()
            else:
                nan = np.array([np.nan, 1.0])
                value.answer = ValueAnswer(weights_W=nan, action=4, values_M=np.array([0.1, 0.1]))
            answers = await asyncio.gather(*(r.rank() for _ in range(12)))
            expected = "late" if trouble == "late" else "invalid_answer"
            assert {answer["reason"] for answer in answers} == {expected}
            assert max(value.rows) > 8, "they did not share a call: the test shows nothing"
            assert link.breaker.admits
            if value.gate is not None:
                value.gate.set()

    run(main())


def test_what_is_capped_is_calls_not_requests() -> None:
    async def main() -> None:
        value = FakeValueClient(SURFACE, action=4)
        async with rig(config(value_network={"max_in_flight": 2}), value=value) as r:
            answers = await asyncio.gather(*(r.rank() for _ in range(12)))
            assert {answer["reason"] for answer in answers} == {None}

    run(main())


def typical(mean_s: float, deviation_s: float) -> Typical:
    return Typical(mean_s=mean_s, deviation_s=deviation_s, seen=True)


def test_how_long_a_question_may_wait() -> None:
    ranker, call = typical(0.016, 0.004), typical(0.002, 0.001)
    assert linger_s(ranker, call, limit_s=0.004, budget_s=0.010) == pytest.approx(0.004)
    assert linger_s(ranker, call, limit_s=1.0, budget_s=0.010) == pytest.approx(0.007), "the budget"
    assert linger_s(ranker, call, limit_s=1.0, budget_s=1.0) == pytest.approx(0.009), "the ranker's slack"
    assert linger_s(typical(0.002, 0.0), call, limit_s=1.0, budget_s=1.0) == 0.0, "a fast ranker"
    assert linger_s(Typical(), call, limit_s=1.0, budget_s=1.0) == 0.0
    assert linger_s(ranker, Typical(), limit_s=1.0, budget_s=1.0) == 0.0


@given(st.lists(st.floats(0.0, 10.0), min_size=1, max_size=200))
def test_a_typical_time_lies_among_those_seen(times: list[float]) -> None:
    found = Typical()
    for seconds in times:
        found.add(seconds)
    assert min(times) - 1e-9 <= found.mean_s <= max(times) + 1e-9
    assert 0.0 <= found.deviation_s <= 10.0


def test_requests_beside_a_ranker_share_calls_and_weights_do_not_wait() -> None:
    async def main() -> Any:
        value = FakeValueClient(SURFACE, action=4)
        async with rig(config(value_network={"coalesce_ms": 1000.0}), value=value) as r:
            # The ranker takes as long as it does on a slow day: there is slack.
            r.sidecar.links.observe_ranker(60.0)
            r.sidecar.links.links[0].coalescer.typical.add(0.001)
            value.rows.clear()
            async with asyncio.timeout(20):
                answers = await asyncio.gather(*(r.rank() for _ in range(4)))
            assert {answer["source"] for answer in answers} == {"value_network"}
            assert value.rows == [4]
            async with asyncio.timeout(20):
                weights = await r.client.post("/v1/weights", {"state": STATE, "user_id": "u"})
            assert weights.status == 200

    run(main())
