"""Changing the policy of a sidecar over fakes, with a real SQLite: what is refused, what is in force, what
survives. Two sidecars over one database are two replicas."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import threading
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from serve.config import Limits, SidecarConfig
from serve.decide import OperatingPoint
from serve.metrics import Metrics
from serve.policies import Policies
from serve.policy import parse
from serve.policy_keeper import PolicyKeeper
from serve.policy_rules import Change
from serve.policy_schema import Accepted, InForceAnswer, Numbered, PolicyList, Reported
from serve.policy_store import PolicyStore
from serve.requests import parse_weights
from serve.schema import ErrorAnswer
from tests.support.frontiers import frontier_data
from tests.unit.serve.asgi import Answer
from tests.unit.serve.support import SURFACE, Rig, config, rig
from triton_models.errors import (
    ConfigurationError,
    PolicyConflictError,
    StoreError,
    UpstreamUnavailableError,
)

OPERATOR, VIEWER = "operator-token-0123456789", "viewer-token-0123456789"
KNEE, DOMINATED = [0.75, 0.25], [0.25, 0.75]  # the two points of the test frontier
JSON = {"content-type": "application/json"}


def settings(folder: Path, **changes: Any) -> SidecarConfig:
    (folder / "operators").write_text(f"ada:{OPERATOR}")
    (folder / "viewers").write_text(f"dash:{VIEWER}")
    # Not the shipped 2 s: where the disk is busy, a commit of SQLite's takes longer.
    store = {"url": f"sqlite:///{folder / 'p.db'}", "poll_s": 0.02, "timeout_s": 60.0}
    store["local_copy"] = str(folder / "last.json")
    access = {"operator_tokens": str(folder / "operators"), "viewer_tokens": str(folder / "viewers")}
    return config(**{"policy_store": store, "access": access, **changes})


def change(**changes: Any) -> dict[str, Any]:
    arms = [{"name": "knee", "choice": KNEE}]
    return {
        "policy": {"arms": arms},
        "reason": "a test",
        "frontier": frontier_data(SURFACE),
        **changes,
    }


async def post(r: Rig, path: str, data: Any, token: str | None = OPERATOR) -> Answer:
    headers = JSON | ({"authorization": f"Bearer {token}"} if token else {})
    return await r.client.post(path, data, headers)


async def get(r: Rig, path: str, token: str | None = VIEWER) -> Answer:
    headers = {"authorization": f"Bearer {token}"} if token else {}
    return await r.client.request("GET", path, b"", headers)


async def apply(r: Rig, **changes: Any) -> dict[str, Any]:
    answer = await post(r, "/v1/policies", change(**changes))
    assert answer.status == 201, answer.body
    return Accepted.model_validate_json(answer.body).model_dump()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.005)


def version(r: Rig) -> int:
    return r.sidecar.policies.snapshot.policy.version


def refusal(answer: Answer) -> tuple[int, str]:
    error = ErrorAnswer.model_validate_json(answer.body).error
    assert "\n" not in error.message
    assert "0123456789" not in error.message
    return answer.status, error.type


def test_apply_read_and_roll_back(tmp_path: Path) -> None:
    async def main() -> None:
        async with rig(settings(tmp_path)) as r:
            assert InForceAnswer.model_validate((await get(r, "/v1/policy")).json()).version == 0
            done = await apply(r)
            assert (done["version"], done["sequence"], done["author"]) == (1, 1, "ada")
            answer = await r.rank(user_id="u")
            assert (answer["policy_version"], answer["arm"]) == (1, "knee")
            assert list(answer["scalarization"].values()) == KNEE
            await apply(r, policy={"arms": [{"name": "off", "choice": "static"}]}, frontier=None)
            assert (await r.rank())["source"] == "static"
            back = await post(r, "/v1/policy/rollback", {"reason": "no good"})
            assert (back.status, back.json()["version"]) == (200, 1)
            assert (await r.rank())["policy_version"] == 1
            assert (await post(r, "/v1/policy/rollback", {"reason": "x", "version": 0})).status == 200
            assert (await r.rank())["arm"] == "default"
            assert refusal(await post(r, "/v1/policy/rollback", {"reason": "x"})) == (404, "no_policy")
            listed = PolicyList.model_validate((await get(r, "/v1/policies")).json())
            assert [p.version for p in listed.policies] == [2, 1]
            assert [a.version for a in listed.activations] == [0, 1, 2, 1]
            one = Numbered.model_validate((await get(r, "/v1/policies/1")).json())
            assert (one.author, one.frontier_fingerprint is None, one.forced) == ("ada", False, False)
            assert (await get(r, "/v1/policies/0")).json()["author"] == "configuration"
            for nothing in ("3", "-1", "x", "1" * 30):
                assert refusal(await get(r, f"/v1/policies/{nothing}")) == (404, "no_policy")
            metrics = r.sidecar.metrics.exposition().decode()
            assert 'puts_policy_changes_total{kind="rollback"} 2.0' in metrics
            assert "puts_policy_store_up 1.0" in metrics

    asyncio.run(main())


def test_roles(tmp_path: Path) -> None:
    async def main() -> None:
        async with rig(settings(tmp_path)) as r:
            report = {"policy_version": 0, "metric": "repin", "lift": 0, "interval": [0, 0]}
            changes = {"/v1/policies": change(), "/v1/policy/rollback": {"reason": "x"}}
            for path, data in (changes | {"/v1/policy/guardrail-metrics": report}).items():
                assert refusal(await post(r, path, data, None)) == (401, "no_token")
                assert refusal(await post(r, path, data, OPERATOR + "x")) == (401, "no_token")
                assert refusal(await post(r, path, data, VIEWER)) == (403, "forbidden")
            for path in ("/v1/policy", "/v1/policies", "/v1/policies/0"):
                assert refusal(await get(r, path, None)) == (401, "no_token")
                assert (await get(r, path, OPERATOR)).status == 200
            assert version(r) == 0

    asyncio.run(main())


def test_who_never_explores_is_told_to_operators_only(tmp_path: Path) -> None:
    policy = change()["policy"] | {"excluded": {"users": ["ann", "bob"], "placements": ["checkout"]}}

    async def main() -> None:
        async with rig(settings(tmp_path)) as r:
            await apply(r, policy=policy)
            for path in ("/v1/policy", "/v1/policies/1"):
                for token, seen in ((OPERATOR, ["ann", "bob"]), (VIEWER, None)):
                    answer = (await get(r, path, token)).json()
                    excluded = answer.get("policy", answer)["excluded"]
                    users = excluded.get("users")
                    assert (sorted(users) if users else users) == seen
                    assert (excluded["placements"], answer["excluded_users"]) == (["checkout"], 2)
        no_tokens = {"viewer_tokens": None, "operator_tokens": None}
        async with rig(settings(tmp_path, access=no_tokens)) as r:
            assert b"ann" not in (await get(r, "/v1/policy", None)).body
        async with rig(settings(tmp_path, access=no_tokens | {"allow_local_changes": True})) as r:
            assert b"ann" in (await get(r, "/v1/policy", None)).body
            rebound = {"host": "rebound.example"}
            assert b"ann" not in (await r.client.request("GET", "/v1/policy", b"", rebound)).body

    asyncio.run(main())


def test_without_tokens_and_without_a_store(tmp_path: Path) -> None:
    async def main() -> None:
        async with rig() as r:
            assert (await get(r, "/v1/policy", None)).json()["store"]["store"] == "none"
            assert refusal(await post(r, "/v1/policies", change(), None)) == (403, "forbidden")
            assert refusal(await get(r, "/v1/policies", None)) == (503, "store_unavailable")
            assert (await r.client.get("/readyz")).json()["policy"]["store"] == "none"
        async with rig(config(access={"allow_local_changes": True})) as r:
            assert refusal(await post(r, "/v1/policies", change(), None)) == (503, "store_unavailable")
        async with rig(settings(tmp_path, access={"allow_local_changes": True})) as r:
            done = await r.client.post("/v1/policies", change(author="eve"), JSON)
            assert done.json()["author"] == "eve (unnamed operator)"
            assert refusal(await r.client.post("/v1/policies", change())) == (403, "forbidden")
            rebound = JSON | {"host": "rebound.example:8000"}
            for path in ("/v1/policies", "/v1/policy/rollback", "/v1/drift/baseline"):
                assert refusal(await r.client.post(path, change(), rebound)) == (403, "forbidden")

    asyncio.run(main())


def test_local_changes_need_loopback() -> None:
    with pytest.raises(ConfigurationError, match="loopback"):
        config(access={"allow_local_changes": True}, http={"host": "0.0.0.0"})
    with pytest.raises(ConfigurationError, match="password"):
        config(policy_store={"url": "postgresql://ada:secret@host/db"})


OTHER = {**SURFACE.to_dict(), "name": "other"}


@pytest.mark.parametrize(
    ("changes", "kind", "word"),
    [
        ({"frontier": None}, "invalid", "no frontier"),
        ({"policy": {"arms": [{"name": "a", "choice": [0.5, 0.5]}]}}, "invalid", "not a point"),
        ({"policy": {"arms": [{"name": "a", "choice": DOMINATED}]}}, "invalid", "not a point"),
        (
            {"policy": {"arms": [{"name": "a", "choice": "static", "cohorts": {"core": [1, 1]}}]}},
            "invalid",
            "core",
        ),
        ({"policy": {"arms": [{"name": "a", "choice": [1, 2, 3]}]}}, "invalid", "3"),
        ({"policy": {}}, "invalid", "arms"),
        ({"reason": ""}, "invalid", "reason"),
        ({"surprise": 1}, "invalid", "surprise"),
        ({"frontier": {"version": 1}}, "invalid", "frontier"),
        ({"frontier": None, "frontier_fingerprint": "unheard"}, "invalid", "unheard"),
        ({"surface_fingerprint": "other"}, "surface_mismatch", "other"),
    ],
)
def test_what_may_not_be_applied(tmp_path: Path, changes: dict[str, Any], kind: str, word: str) -> None:
    async def main() -> None:
        async with rig(settings(tmp_path)) as r:
            answer = await post(r, "/v1/policies", change(**changes))
            assert refusal(answer) == (422, kind)
            assert word in answer.json()["error"]["message"]
            assert version(r) == 0
            assert (await get(r, "/v1/policies")).json() == {"policies": [], "activations": []}

    asyncio.run(main())


def test_bodies_that_are_no_changes(tmp_path: Path) -> None:
    async def main() -> None:
        async with rig(settings(tmp_path)) as r:
            for path in ("/v1/policies", "/v1/policy/rollback", "/v1/policy/guardrail-metrics"):
                assert refusal(await post(r, path, b"{")) == (400, "malformed")
                assert refusal(await post(r, path, [1])) == (422, "invalid")
            assert refusal(await post(r, "/v1/policies", b" " * 9_000_000)) == (413, "too_large")

    asyncio.run(main())


def test_forced_kept_and_remembered(tmp_path: Path) -> None:
    async def main() -> None:
        async with rig(settings(tmp_path)) as r:
            off = {"arms": [{"name": "a", "choice": [0.5, 0.5]}]}
            await apply(r, policy=off, force_reason="an experiment")
            one = (await get(r, "/v1/policies/1")).json()
            assert one["forced"]
            assert "an experiment" in one["reason"]
            # What is in force may stay beside a new arm; the store knows the frontier from before.
            arms = [{"name": "a", "choice": [0.5, 0.5]}, {"name": "b", "choice": KNEE}]
            ramp = {"arm": "b", "steps": [{"share": 0.01}]}
            fingerprint = one["frontier_fingerprint"]
            await apply(
                r, policy={"arms": arms, "ramp": ramp}, frontier=None, frontier_fingerprint=fingerprint
            )
            got = (await get(r, "/v1/policy")).json()
            assert (got["version"], got["ramp"]["share"], got["shares"]["b"]) == (2, 0.01, 0.01)
            assert not (await get(r, "/v1/policies/2")).json()["forced"]

    asyncio.run(main())


def test_all_replicas_follow_and_of_two_changes_one_wins(tmp_path: Path) -> None:
    async def main() -> None:
        async with AsyncExitStack() as stack:
            one, two = [await stack.enter_async_context(rig(settings(tmp_path))) for _ in range(2)]
            await apply(one)
            assert version(one) == 1
            await until(lambda: version(two) == 1)
            same = change(expected_sequence=1)
            both = await asyncio.gather(*(post(r, "/v1/policies", same) for r in (one, two)))
            assert sorted(answer.status for answer in both) == [201, 409]
            loser = next(answer for answer in both if answer.status == 409)
            assert "try again" in loser.json()["error"]["message"]
            await until(lambda: version(one) == version(two) == 2)
            stale = await post(r=one, path="/v1/policies", data=change(expected_sequence=1))
            assert refusal(stale) == (409, "conflict")
            await post(two, "/v1/policy/rollback", {"reason": "x"})
            await until(lambda: version(one) == 1)

    asyncio.run(main())


def test_survives_a_restart_with_and_without_its_database(tmp_path: Path) -> None:
    async def main() -> None:
        async with rig(settings(tmp_path)) as r:
            await apply(r)
            await apply(r)
        async with rig(settings(tmp_path)) as r:
            assert (await r.rank())["policy_version"] == 2
        for file in tmp_path.glob("p.db*"):
            file.unlink()
        (tmp_path / "p.db").mkdir()  # something that is no database is in its place
        async with rig(settings(tmp_path)) as r:
            assert (await r.rank())["policy_version"] == 2
            ready = await r.client.get("/readyz")
            assert ready.status == 200
            assert ready.json()["policy"]["store"] == "down"
            assert refusal(await post(r, "/v1/policies", change())) == (503, "store_unavailable")
            assert "puts_policy_store_up 0.0" in r.sidecar.metrics.exposition().decode()
            (tmp_path / "p.db").rmdir()
            # The lost database comes back empty: it is given back what is known, and goes on counting.
            await until(lambda: r.sidecar.keeper.status == "up")
            await until(lambda: PolicyStore(f"sqlite:///{tmp_path / 'p.db'}").sequence() == 2)
            assert (await apply(r))["version"] == 3
            assert (await post(r, "/v1/policy/rollback", {"reason": "x"})).json()["version"] == 2

    asyncio.run(main())


def test_a_store_of_another_surface_or_of_an_older_backup(tmp_path: Path) -> None:
    async def main() -> None:
        async with rig(settings(tmp_path)) as r:
            await apply(r)
            await apply(r)
            store = PolicyStore(f"sqlite:///{tmp_path / 'p.db'}")
            foreign = r.sidecar.policies.snapshot.policy.model_copy(update={"surface_fingerprint": "x"})
            store.add(foreign, expected=2)
            await until(lambda: r.sidecar.keeper.status == "unusable")
            assert (await r.rank())["policy_version"] == 2
            backup = PolicyStore(f"sqlite:///{tmp_path / 'old.db'}")
            backup.add(r.sidecar.policies.snapshot.policy, expected=0)
            with r.sidecar.keeper._lock:  # not between two questions of one look
                r.sidecar.keeper._store = backup
            await until(lambda: r.sidecar.keeper.status == "behind")
            assert (await r.rank())["policy_version"] == 2

    asyncio.run(main())


def test_a_damaged_local_copy_is_no_obstacle(tmp_path: Path) -> None:
    async def main() -> None:
        for text in (
            "",
            "[]",
            "{}",
            '{"activations": [{}], "policy": null}',
            '{"activations": 1, "policy": 2}',
        ):
            (tmp_path / "last.json").write_text(text)
            async with rig(settings(tmp_path)) as r:
                assert (await r.rank())["policy_version"] == 0

    asyncio.run(main())


RAMPED = {
    "arms": [{"name": "old", "choice": "static"}, {"name": "new", "choice": KNEE}],
    "ramp": {"arm": "new", "steps": [{"share": 0.5}]},
    "guardrails": {
        "minimum_sample": 20,
        "max_fallback_share": 0.5,
        "metrics": {"successful_session": {"minimum_lift": -0.01}},
    },
}


def test_the_guardrail_goes_back_exactly_once_across_replicas(tmp_path: Path) -> None:
    async def main() -> None:
        async with AsyncExitStack() as stack:
            rigs = [await stack.enter_async_context(rig(settings(tmp_path))) for _ in range(2)]
            await apply(rigs[0])
            await apply(rigs[0], policy=RAMPED)
            await until(lambda: version(rigs[1]) == 2)
            for r in rigs:
                r.value.error = UpstreamUnavailableError("gone")
            await asyncio.gather(*(r.rank(user_id=f"u{n}") for r in rigs for n in range(100)))
            await until(lambda: version(rigs[0]) == version(rigs[1]) == 1)
            listed = (await get(rigs[0], "/v1/policies")).json()["activations"]
            assert [a["author"] for a in listed] == ["guardrail", "ada", "ada"]
            assert listed[0]["reason"].startswith("policy 2: ")
            assert "fell back" in listed[0]["reason"]
            once = 'puts_guardrail_rollbacks_total{limit="fallback_share"} 1.0'
            await until(lambda: sum(once in r.sidecar.metrics.exposition().decode() for r in rigs) == 1)

    asyncio.run(main())


def test_a_ramp_ends_by_the_traffic_of_replicas_that_each_have_too_little_of_it(tmp_path: Path) -> None:
    async def main() -> None:
        async with AsyncExitStack() as stack:
            rigs = [await stack.enter_async_context(rig(settings(tmp_path))) for _ in range(3)]
            await apply(rigs[0])
            await apply(rigs[0], policy=RAMPED)  # needs 20 requests of the ramped arm
            await until(lambda: {version(r) for r in rigs} == {2})
            for r in rigs:
                r.value.error = UpstreamUnavailableError("gone")
                # Users that are in; a replica alone sees 10.
                ramped, users = 0, itertools.count()
                while ramped < 10 and version(r) == 2:
                    ramped += (await r.rank(user_id=f"u{next(users)}"))["arm"] == "new"
            await until(lambda: {version(r) for r in rigs} == {1})
            listed = (await get(rigs[0], "/v1/policies")).json()["activations"]
            assert [a["author"] for a in listed] == ["guardrail", "ada", "ada"]
            # Judged as soon as there are enough: the last replica may not have sent all of its own yet.
            found = re.search(r"(\d+) of \1 requests", listed[0]["reason"])
            assert found and 20 <= int(found[1]) <= 30, listed[0]["reason"]

    asyncio.run(main())


def test_faults_of_the_other_arm_end_no_ramp(tmp_path: Path) -> None:
    async def main() -> None:
        async with rig(settings(tmp_path)) as r:
            arms = [{"name": "old", "choice": KNEE}, {"name": "new", "choice": "static"}]
            await apply(r, policy=RAMPED | {"arms": arms})
            r.value.error = UpstreamUnavailableError("gone")
            answers = [await r.rank(user_id=f"u{n}") for n in range(100)]
            assert {a["source"] for a in answers} == {"production", "static"}
            assert r.sidecar.keeper.guard() is None
            watched = (await get(r, "/v1/policy")).json()["ramp"]["watched"]
            assert watched["requests"] == sum(a["arm"] == "new" for a in answers)
            assert watched["fallbacks"] == 0

    asyncio.run(main())


def test_a_reported_metric_ends_the_ramp(tmp_path: Path) -> None:
    async def main() -> None:
        async with rig(settings(tmp_path)) as r:
            await apply(r)
            await apply(r, policy=RAMPED)
            report = {"policy_version": 2, "metric": "successful_session", "lift": -0.02}
            path = "/v1/policy/guardrail-metrics"
            fine = await post(r, path, report | {"interval": [-0.05, 0.01]})
            assert Reported.model_validate(fine.json()).rolled_back is False
            assert refusal(await post(r, path, report | {"interval": [0, 0], "metric": "x"})) == (
                422,
                "invalid",
            )
            bad = await post(r, path, report | {"interval": [-0.05, -0.02]})
            assert Reported.model_validate(bad.json()) == Reported(
                policy_version=1, rolled_back=True, reason=bad.json()["reason"]
            )
            assert "successful_session" in bad.json()["reason"]
            late = await post(r, path, report | {"interval": [-0.05, -0.02]})
            assert refusal(late) == (409, "conflict")

    asyncio.run(main())


def test_a_guardrail_whose_store_is_down_tries_again(tmp_path: Path) -> None:
    """A clock of our own, no thread: the keeper is asked step by step."""
    moment = [1000.0]
    metrics = Metrics(SURFACE)
    settled = settings(tmp_path)
    policies = Policies(settled, OperatingPoint.parse(SURFACE, {}), metrics, now=lambda: moment[0])
    keeper = PolicyKeeper(settled, policies, now=lambda: moment[0])
    for policy in (change()["policy"], RAMPED):
        keeper.apply(parse(Change, change(policy=policy), source="test"), author="ada")
    assigned = next(a for a in (policies.assign(request(n), explorable=False) for n in range(99)) if a.ramped)
    for _ in range(20):
        policies.record_failure(assigned)
    store = keeper.store

    class Down:
        def go_back(self, **_: Any) -> None:
            raise StoreError("down")

        def exchange_windows(self, **_: Any) -> None:
            raise StoreError("down")

    keeper._store = Down()  # type: ignore[assignment]
    assert keeper.guard() is None
    assert policies.snapshot.policy.version == 2
    keeper._store = store
    crossed = keeper.guard()
    assert crossed is not None
    assert crossed.limit == "error_share"
    assert policies.snapshot.policy.version == 1
    assert keeper.guard() is None
    keeper.stop()


class Ramping:
    """A keeper without its thread, on a clock of our own, whose policy 1 is a ramp that has been seen."""

    def __init__(self, settled: SidecarConfig) -> None:
        self.now_s = 1000.0
        policies = Policies(
            settled, OperatingPoint.parse(SURFACE, {}), Metrics(SURFACE), now=lambda: self.now_s
        )
        self.keeper = PolicyKeeper(settled, policies, now=lambda: self.now_s)
        self.keeper.apply(parse(Change, change(policy=RAMPED), source="test"), author="ada")
        given = (policies.assign(request(n), explorable=False) for n in range(99))
        policies.record_failure(next(a for a in given if a.ramped))


def test_the_thread_and_a_reported_metric_do_not_exchange_at_once(tmp_path: Path) -> None:
    """The second to come finds that it has just been done; before, both wrote the replica's row."""
    ramping = Ramping(settings(tmp_path))
    first_is_in, go_on = threading.Event(), threading.Event()
    calls = []

    class Slow:
        def exchange_windows(self, **told: Any) -> list[str]:
            calls.append(told["at"])
            first_is_in.set()
            assert go_on.wait(60)
            return []

    store, ramping.keeper._store = ramping.keeper.store, Slow()  # type: ignore[assignment]
    thread = threading.Thread(target=ramping.keeper.guard)
    thread.start()
    assert first_is_in.wait(60)
    other = threading.Thread(target=ramping.keeper.guard)
    other.start()
    other.join(0.2)  # it may wait for the first, or see that there is nothing to do
    go_on.set()
    for one in (thread, other):
        one.join(60)
        assert not one.is_alive()
    assert calls == [1000.0]
    ramping.keeper._store = store
    ramping.keeper.stop()


def test_an_exchange_that_another_one_was_faster_with_is_no_conflict_of_the_caller(tmp_path: Path) -> None:
    ramping = Ramping(settings(tmp_path))

    class Faster:
        def exchange_windows(self, **_: Any) -> list[str]:
            raise PolicyConflictError("somebody else has changed the policy")

    store, ramping.keeper._store = ramping.keeper.store, Faster()  # type: ignore[assignment]
    assert ramping.keeper.guard() is None
    ramping.keeper._store = store
    ramping.keeper.stop()


def request(number: int) -> Any:
    return parse_weights(json.dumps({"user_id": f"u{number}"}).encode(), Limits())


def test_openapi_describes_the_routes(tmp_path: Path) -> None:
    async def main() -> None:
        async with rig(settings(tmp_path)) as r:
            paths = (await r.client.get("/openapi.json")).json()["paths"]
            assert set(paths["/v1/policies"]) == {"get", "post"}
            schema = paths["/v1/policies"]["post"]["requestBody"]["content"]["application/json"]["schema"]
            assert set(schema["properties"]) >= {"policy", "reason", "frontier", "expected_sequence"}
            for path in ("/v1/policy/rollback", "/v1/policy/guardrail-metrics"):
                assert {"401", "403", "409", "422", "503"} <= set(paths[path]["post"]["responses"])
            assert paths["/v1/policy"]["get"]["security"] == [{"bearer": []}]
            assert (await r.client.request("PUT", "/v1/policies")).headers["allow"] == "GET, POST"
            assert "404" in paths["/v1/policies/{version}"]["get"]["responses"]

    asyncio.run(main())
