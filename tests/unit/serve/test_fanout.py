"""Every way in which the value network can fail ends in a ranking with production weights and a reason."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from serve.decide import ValueAnswer
from serve.fakes import FakeRankerClient, FakeValueClient
from tests.support.surfaces import small_surface_data
from tests.unit.serve.support import HISTORY, STATE, SURFACE, body, config, rig
from triton_models.errors import UpstreamInvalidError, UpstreamUnavailableError
from triton_models.surface import Surface

PRODUCTION = {"repin": 91.6, "p2p": 9.1}


def metric(text: str, name: str) -> float:
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name))


def run(coroutine: Any) -> Any:
    """Run a test's coroutine; an exception nobody retrieved fails it."""
    complaints: list[Any] = []

    async def main() -> Any:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        return await coroutine

    result = asyncio.run(main())
    assert complaints == []
    return result


def test_the_value_network_chooses() -> None:
    async def main() -> None:
        async with rig() as r:
            answer = await r.rank(request_id="r1")
            # Scores grow with position, utility = 82.5 * score at weights (105, 15.5, 2, -40).
            assert answer["items"] == [109, 108, 107]
            assert answer["scores"][0] == pytest.approx(105 + 15.5 + 2 - 40)
            assert (answer["source"], answer["reason"], answer["action"]) == ("value_network", None, 4)
            assert answer["weights"] == {"repin": 105.0, "p2p": 15.5}
            assert answer["scalarization"] == {"repin": pytest.approx(0.8), "p2p": pytest.approx(0.2)}
            assert answer["request_id"] == "r1"
            assert r.value.calls[0][1].tolist() == pytest.approx([0.8, 0.2])
            text = (await r.client.get("/metrics")).body.decode()
            assert metric(text, 'puts_actions_total{action="4"}') == 1
            assert metric(text, 'puts_leg_seconds_count{leg="added"}') == 1

    run(main())


SHORT = {"budget_ms": 10.0}


def late_value() -> FakeValueClient:
    return FakeValueClient(SURFACE, action=4, gate=asyncio.Event())


def test_late_is_left_alone_and_counted() -> None:
    async def main() -> None:
        value = late_value()
        async with rig(config(value_network=SHORT), value=value) as r:
            answer = await r.rank()
            assert (answer["reason"], answer["weights"]) == ("late", PRODUCTION)
            assert answer["timings_ms"]["total"] >= 10
            assert r.sidecar.links.in_flight == 1
            value.gate.set()
            await asyncio.sleep(0.01)
            assert r.sidecar.links.in_flight == 0
            text = (await r.client.get("/metrics")).body.decode()
            assert metric(text, 'puts_fallbacks_total{reason="late"}') == 1
            assert metric(text, 'puts_late_answers_total{outcome="answered",upstream="value_network"}') == 1

    run(main())


def test_a_late_failure_is_consumed() -> None:
    async def main() -> None:
        value = late_value()
        value.error = UpstreamUnavailableError("gone")
        async with rig(config(value_network=SHORT), value=value) as r:
            assert (await r.rank())["reason"] == "late"
            value.gate.set()
            await asyncio.sleep(0.01)
            text = (await r.client.get("/metrics")).body.decode()
            assert metric(text, 'puts_late_answers_total{outcome="failed",upstream="value_network"}') == 1
        import gc

        gc.collect()

    run(main())


def test_a_late_failure_reaches_the_link() -> None:
    async def main() -> None:
        value = late_value()
        async with rig(config(value_network={**SHORT, "breaker": {"failures": 1}}), value=value) as r:
            assert (await r.rank())["reason"] == "late"
            value.error = value.check_error = UpstreamUnavailableError("gone")
            value.gate.set()
            await asyncio.sleep(0.01)
            assert (await r.rank())["reason"] == "breaker_open"
            assert len(value.calls) == 1

    run(main())


def test_a_failure_beside_a_failed_ranker_reaches_the_link() -> None:
    async def main() -> None:
        value = FakeValueClient(SURFACE, action=4, error=UpstreamUnavailableError("gone"))
        ranker = FakeRankerClient(4, delay_s=0.02, error=UpstreamUnavailableError("down"))
        settings = config(value_network={"breaker": {"failures": 1}})
        async with rig(settings, value=value, ranker=ranker) as r:
            assert (await r.client.post("/v1/rank", body())).status == 503
            assert r.sidecar.links.links[0].state == "open"

    run(main())


def test_waiting_beside_a_slow_ranker_costs_nothing() -> None:
    async def main() -> None:
        value = FakeValueClient(SURFACE, action=4, delay_s=0.04)
        ranker = FakeRankerClient(4, delay_s=0.12)
        async with rig(config(value_network={"budget_ms": 5}), value=value, ranker=ranker) as r:
            answer = await r.rank()
            assert answer["source"] == "value_network"
            assert answer["timings_ms"]["added"] < answer["timings_ms"]["ranker"] / 2

    run(main())


def test_both_start_at_the_same_time() -> None:
    async def main() -> None:
        gate = asyncio.Event()
        value = FakeValueClient(SURFACE, action=4, gate=gate)
        ranker = FakeRankerClient(4, gate=gate)
        async with rig(value=value, ranker=ranker) as r:
            under_way = asyncio.create_task(r.rank())
            async with asyncio.timeout(60):
                while not (value.calls and ranker.calls):  # neither can end before both have begun
                    await asyncio.sleep(0.001)
            gate.set()
            assert (await under_way)["source"] == "value_network"

    run(main())


def test_overloaded_after_so_many_in_flight() -> None:
    async def main() -> None:
        value = late_value()
        settings = config(value_network={"budget_ms": 1, "max_in_flight": 3})
        async with rig(settings, value=value) as r:
            reasons = [(await r.rank())["reason"] for _ in range(5)]
            assert reasons == ["late"] * 3 + ["overloaded"] * 2
            value.gate.set()
            await asyncio.sleep(0.01)
            assert (await r.rank())["reason"] is None

    run(main())


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (UpstreamUnavailableError("down"), "unavailable"),
        (UpstreamInvalidError("INVALID_ARGUMENT"), "invalid_answer"),
    ],
)
def test_failing_calls_stop_until_the_server_speaks_again(error: Exception, reason: str) -> None:
    async def main() -> None:
        value = FakeValueClient(SURFACE, action=4, error=error)
        breaker = {"open_s": 0.05, "probe_s": 0.01}
        async with rig(config(value_network={"breaker": breaker}), value=value) as r:
            value.check_error = UpstreamUnavailableError("down")
            answers = [await r.rank() for _ in range(4)]
            assert {tuple(answer["weights"].items()) for answer in answers} == {tuple(PRODUCTION.items())}
            reasons = [answer["reason"] for answer in answers]
            asked = sum(tensors["user_embedding"].any() for tensors, _, _ in value.calls)
            assert 1 <= asked <= 3, "the watcher's own calls count as well"
            assert reasons == [reason] * asked + ["breaker_open"] * (4 - asked)
            value.error = value.check_error = None
            async with asyncio.timeout(60):
                while (await r.rank())["reason"] is not None:
                    await asyncio.sleep(0.02)

    run(main())


@pytest.mark.parametrize(
    "rubbish",
    [
        ValueAnswer(weights_W=np.array([np.nan, 1.0]), action=4, values_M=np.array([0.1, 0.1])),
        ValueAnswer(weights_W=np.array([105.0, 15.5]), action=99, values_M=np.array([0.1, 0.1])),
        ValueAnswer(weights_W=np.array([105.0, 16.5]), action=4, values_M=np.array([0.1, 0.1])),
        ValueAnswer(weights_W=np.array([]), action=4, values_M=np.array([])),
    ],
)
def test_rubbish(rubbish: ValueAnswer) -> None:
    async def main() -> None:
        async with rig(value=FakeValueClient(SURFACE, answer=rubbish)) as r:
            answer = await r.rank()
            assert (answer["source"], answer["reason"]) == ("production", "invalid_answer")
            assert answer["weights"] == PRODUCTION
            assert len(answer["items"]) == 3

    run(main())


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ({**STATE, "history": None}, "state_incomplete"),
        ({k: v for k, v in STATE.items() if k != "history"}, "state_incomplete"),
        ({**STATE, "history": {**HISTORY, "age_s": [1.0]}}, "state_invalid"),
        ({**STATE, "history": {**HISTORY, "embedding": [[1, 2], [3]]}}, "state_invalid"),
        ({**STATE, "history": 7}, "state_invalid"),
    ],
)
def test_a_bad_history_is_a_fallback_and_the_ranker_has_what_it_needs(state: Any, reason: str) -> None:
    async def main() -> None:
        async with rig() as r:
            answer = await r.rank(state=state)
            assert (answer["reason"], answer["weights"]) == (reason, PRODUCTION)
            assert r.value.calls == []
            assert set(r.ranker.calls[0][0]) == {"user_embedding", "context"}

    run(main())


@pytest.mark.parametrize("state", [None, {}, {**STATE, "user_embedding": [1.0]}, {**STATE, "context": [1]}])
def test_what_the_ranker_itself_needs_is_422_and_for_weights_a_fallback(state: Any) -> None:
    async def main() -> None:
        async with rig() as r:
            answer = await r.client.post("/v1/rank", body(state=state))
            assert answer.status == 422
            assert answer.json()["error"]["type"] == "invalid"
            weights = await r.client.post("/v1/weights", {"state": state})
            assert weights.status == 200
            assert weights.json()["reason"] in ("state_incomplete", "state_invalid")

    run(main())


def test_a_ranker_that_needs_no_state() -> None:
    async def main() -> None:
        async with rig(config(ranker={"state_inputs": {}})) as r:
            assert (await r.rank(state=None))["reason"] == "state_incomplete"

    run(main())


@pytest.mark.parametrize("need", ["history_embedding", "history_action", "history_age_s"])
def test_a_ranker_that_needs_any_part_of_a_bad_history_is_422(need: str) -> None:
    async def main() -> None:
        async with rig(config(ranker={"state_inputs": {need: "x"}})) as r:
            answer = await r.client.post("/v1/rank", body(state={**STATE, "history": None}))
            assert (answer.status, answer.json()["error"]["type"]) == (422, "invalid")
            await r.rank()
            assert need in r.ranker.calls[0][0]

    run(main())


def test_control_off_by_request_and_by_operator() -> None:
    async def main() -> None:
        async with rig() as r:
            answer = await r.rank(control=False)
            assert (answer["reason"], answer["weights"], answer["action"]) == (
                "control_off",
                PRODUCTION,
                None,
            )
            r.sidecar.apply({"scalarization": [0, 1], "control": False})
            assert (await r.rank())["reason"] == "control_off"
            assert r.value.calls == []
            r.sidecar.apply({"scalarization": [0, 1]})
            assert (await r.rank())["scalarization"] == {"repin": 0.0, "p2p": 1.0}

    run(main())


def test_another_surface_is_not_asked_until_it_is_right() -> None:
    other = small_surface_data()
    other["controlled"][1]["maximum"] = 31

    async def main() -> None:
        value = FakeValueClient(SURFACE, action=4, served=Surface.from_dict(other))
        async with rig(config(value_network={"recheck_s": 0.05}), value=value) as r:
            assert (await r.rank())["reason"] == "surface_mismatch"
            assert value.calls == []
            ready = await r.client.get("/readyz")
            assert ready.status == 200
            assert ready.json()["degraded"] == "surface_mismatch"
            assert "maximum" in ready.json()["value_network"][0]["detail"]
            value.served = None
            async with asyncio.timeout(60):
                while (await r.rank())["reason"] is not None:
                    await asyncio.sleep(0.01)

    run(main())


def test_servers_that_fit_are_asked_in_turn() -> None:
    from serve.api import create_app
    from serve.sidecar import Sidecar
    from tests.unit.serve.asgi import running

    async def main() -> None:
        values = [FakeValueClient(SURFACE, action=a, name=f"v{a}") for a in (0, 1, 2)]
        values[1].check_error = UpstreamUnavailableError("down")
        app = create_app(config(ranker=None), lambda c: Sidecar(c, value_clients=values))
        async with running(app) as client:
            actions = [
                (await client.post("/v1/weights", {"state": STATE})).json()["action"] for _ in range(4)
            ]
            assert sorted(actions) == [0, 0, 2, 2]

    run(main())


@pytest.mark.parametrize(
    ("ranker", "kind"),
    [
        (FakeRankerClient(4, error=UpstreamUnavailableError("down")), "ranker_unavailable"),
        (FakeRankerClient(4, error=UpstreamInvalidError("NaN")), "ranker_invalid_answer"),
        (FakeRankerClient(4, delay_s=0.5), "ranker_late"),
    ],
)
def test_without_a_ranking_none_is_invented(ranker: FakeRankerClient, kind: str) -> None:
    async def main() -> None:
        async with rig(config(ranker={"timeout_ms": 30}), ranker=ranker) as r:
            answer = await r.client.post("/v1/rank", body())
            assert answer.status == 503
            assert answer.json()["error"]["type"] == kind
            assert (await r.client.post("/v1/weights", {"state": STATE})).status == 200

    run(main())


def test_ranker_calls_do_not_pile_up() -> None:
    async def main() -> None:
        ranker = FakeRankerClient(4, gate=asyncio.Event())
        async with rig(config(ranker={"timeout_ms": 5, "max_in_flight": 2}), ranker=ranker) as r:
            kinds = [(await r.client.post("/v1/rank", body())).json()["error"]["type"] for _ in range(3)]
            assert kinds == ["ranker_late", "ranker_late", "ranker_overloaded"]
            ranker.gate.set()
            await asyncio.sleep(0.01)
            await r.rank()

    run(main())


def test_no_ranker() -> None:
    async def main() -> None:
        async with rig(config(ranker=None)) as r:
            answer = await r.client.post("/v1/rank", body())
            assert (answer.status, answer.json()["error"]["type"]) == (503, "no_ranker")
            assert (await r.client.get("/readyz")).status == 200

    run(main())


def test_trace_context_reaches_both() -> None:
    async def main() -> None:
        trace = {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}
        async with rig() as r:
            await r.client.post("/v1/rank", body(), {**trace, "tracestate": "bad\x7f", "other": "x"})
            assert r.value.calls[0][2] == trace
            assert r.ranker.calls[0][2] == trace

    run(main())
