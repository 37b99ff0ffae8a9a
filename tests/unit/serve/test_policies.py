"""The policy in the sidecar: what is answered, who is asked, what is counted."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from serve.assignment import CompiledPolicy
from serve.decide import OperatingPoint
from serve.fakes import FakeRankerClient
from serve.policies import Activation, Snapshot
from serve.schema import RankAnswer
from tests.unit.serve.support import STATE, SURFACE, Rig, body, config, rig
from tests.unit.serve.test_policy import DAY, RAMP, TWO, policy
from triton_models.errors import UpstreamRefusedError, UpstreamUnavailableError

PRODUCTION = {"repin": 91.6, "p2p": 9.1}


def put(r: Rig, *, at: float = 0.0, **changes: Any) -> None:
    activation = Activation(sequence=1, version=7, at=at, author="a", reason="r")
    compiled = CompiledPolicy(SURFACE, policy(**changes))
    r.sidecar.policies.swap(Snapshot(compiled=compiled, activation=activation))


def test_the_configuration_is_policy_zero() -> None:
    async def main() -> None:
        async with rig() as r:
            answer = await r.rank()
            assert (answer["arm"], answer["policy_version"], answer["propensity"]) == ("default", 0, None)
            assert answer["scalarization"] == {"repin": 0.8, "p2p": 0.2}
            r.sidecar.apply({"scalarization": [0, 1]})
            assert (await r.rank())["scalarization"] == {"repin": 0.0, "p2p": 1.0}
            put(r)
            r.sidecar.apply({"scalarization": [1, 1]})
            assert (await r.rank())["policy_version"] == 7
            metrics = r.sidecar.metrics.exposition().decode()
            assert "puts_policy_version 7.0" in metrics
            assert 'puts_arm_requests_total{arm="default"} 2.0' in metrics

    asyncio.run(main())


def test_going_back_to_the_configuration_has_the_one_of_now() -> None:
    async def main() -> None:
        async with rig() as r:
            policies = r.sidecar.policies
            read_before = Snapshot(compiled=policies.configured, activation=policies.snapshot.activation)
            put(r)
            r.sidecar.apply({"scalarization": [0, 1]})
            policies.swap(read_before)  # the store's thread had looked before the configuration changed
            assert (await r.rank())["scalarization"] == {"repin": 0.0, "p2p": 1.0}

    asyncio.run(main())


@pytest.mark.parametrize(
    ("error", "errors"), [(UpstreamRefusedError("shape"), 0), (UpstreamUnavailableError("down"), 5)]
)
def test_no_ramp_is_blamed_for_requests_that_the_ranker_refuses(error: Exception, errors: int) -> None:
    async def main() -> None:
        ranker = FakeRankerClient(len(SURFACE.heads), error=error)
        async with rig(ranker=ranker) as r:
            whole = {"arm": "new", "steps": [{"share": 1.0}]}
            put(r, arms=TWO, ramp=whole)
            for _ in range(5):
                assert (await r.client.post("/v1/rank", body())).status == 503
            watched = r.sidecar.policies.watch.describe(time.time())
            assert watched is not None
            assert watched["errors"] == errors

    asyncio.run(main())


def test_the_static_arm_does_not_ask_and_is_no_fallback() -> None:
    async def main() -> None:
        async with rig() as r:
            put(r, arms=[{"name": "holdback", "choice": [1, 0], "cohorts": {"core": "static"}}])
            answer = await r.rank(cohort="core")
            RankAnswer.model_validate(answer)
            assert (answer["source"], answer["reason"], answer["weights"]) == ("static", None, PRODUCTION)
            assert (answer["action"], answer["scalarization"], answer["arm"]) == (None, None, "holdback")
            assert r.value.calls == []
            assert 'puts_fallbacks_total{reason="late"} 0.0' in r.sidecar.metrics.exposition().decode()
            assert (await r.rank(cohort="rest"))["source"] == "value_network"
            off = await r.rank(cohort="core", control=False)
            assert (off["source"], off["reason"], off["arm"]) == ("production", "control_off", "holdback")

    asyncio.run(main())


@pytest.mark.parametrize(("replicas", "at_once"), [(1, 8), (4, 2), (64, 1)])
def test_the_replicas_share_the_burst(replicas: int, at_once: int) -> None:
    async def main() -> None:
        async with rig(config(num_replicas=replicas)) as r:
            put(r, exploration={"share": 0.1, "cap": 0.1, "burst": 8})
            policies = r.sidecar.policies
            ids = [f"r{n}" for n in range(1000)]
            wanted = [
                n
                for n in ids
                if policies.snapshot.compiled.wants_exploration(request_id=n, user_id=None, placement=None)
            ]
            others = [n for n in ids if n not in wanted]
            for name in others[:200]:
                assert (await r.rank(request_id=name))["source"] == "value_network"
            sources = [(await r.rank(request_id=name))["source"] for name in wanted[:10]]
            assert sources[:at_once] == ["exploration"] * at_once
            assert sources.count("exploration") <= at_once + 1  # and what the ten bring themselves

    asyncio.run(main())


def test_exploration_draws_from_the_grid_without_asking() -> None:
    async def main() -> None:
        async with rig() as r:
            put(
                r,
                exploration={"share": 1.0, "cap": 1.0},
                excluded={"users": ["vip"], "placements": ["checkout"]},
            )
            answer = await r.rank(request_id="r1", user_id="u")
            RankAnswer.model_validate(answer)
            assert (answer["source"], answer["reason"], answer["propensity"]) == ("exploration", None, 1 / 9)
            weights = SURFACE.actions[answer["action"]].tolist()
            assert list(answer["weights"].values()) == weights
            assert r.value.calls == []
            assert (await r.rank(request_id="r1", user_id="u"))["action"] == answer["action"]
            drawn = {(await r.rank(request_id=f"r{n}"))["action"] for n in range(100)}
            assert drawn == set(range(9))
            for never in ({"user_id": "vip"}, {"placement": "checkout"}):
                assert (await r.rank(**never))["source"] == "value_network"
            off = await r.rank(control=False)
            assert (off["source"], off["reason"], off["propensity"]) == ("production", "control_off", None)
            # Nothing could be learned from a request without its state.
            assert (await r.rank(state=STATE | {"history": None}))["reason"] == "state_incomplete"
            r.sidecar.apply({"scalarization": [1, 1], "control": False})
            assert (await r.rank())["reason"] == "control_off"

    asyncio.run(main())


def test_the_cap_survives_a_change_of_policy() -> None:
    async def main() -> None:
        async with rig() as r:
            sources = []
            for n in range(400):
                if n % 50 == 0:
                    put(r, exploration={"share": 0.1, "cap": 0.1, "burst": 1, "distribution": "uniform"})
                sources.append((await r.rank(request_id=f"{n}"))["source"])
            assert 0 < sources.count("exploration") <= 1 + 40
            metrics = r.sidecar.metrics.exposition().decode()
            assert f'{{outcome="explored"}} {sources.count("exploration")}.0' in metrics

    asyncio.run(main())


def test_the_ramp_stands_where_the_clock_says() -> None:
    async def main() -> None:
        async with rig() as r:
            moment = [1000.0]
            r.sidecar.policies._now = lambda: moment[0]
            put(r, at=1000.0, arms=TWO, ramp=RAMP)
            counts = []
            for elapsed in (-5.0, DAY, 3 * DAY):
                moment[0] = 1000.0 + elapsed
                arms = [(await r.rank(user_id=f"user-{n}"))["arm"] for n in range(300)]
                counts.append(arms.count("new"))
            assert counts[0] < counts[1] < counts[2]

    asyncio.run(main())


def test_a_request_keeps_the_policy_it_began_with() -> None:
    async def main() -> None:
        gate = asyncio.Event()
        async with rig(config(value_network={"budget_ms": 5000})) as r:
            put(r)
            r.value.gate = gate
            under_way = asyncio.create_task(r.rank())
            while not r.value.calls:
                await asyncio.sleep(0)
            r.sidecar.policies.swap(
                Snapshot(
                    compiled=CompiledPolicy(
                        SURFACE, policy(version=8, arms=[{"name": "b", "choice": [0, 1]}])
                    ),
                    activation=Activation(sequence=2, version=8, at=0.0, author="a", reason="r"),
                )
            )
            gate.set()
            old = await under_way
            assert (old["policy_version"], old["arm"], old["scalarization"]["p2p"]) == (7, "all", 0.2)
            new = await r.rank()
            assert (new["policy_version"], new["arm"], new["scalarization"]["p2p"]) == (8, "b", 1.0)

    asyncio.run(main())


def test_refused_values_leave_the_policy() -> None:
    async def main() -> None:
        async with rig() as r:
            r.sidecar.policies.configure(OperatingPoint.parse(SURFACE, {"scalarization": [1, 3]}))
            assert (await r.rank())["scalarization"] == {"repin": 0.25, "p2p": 0.75}

    asyncio.run(main())
