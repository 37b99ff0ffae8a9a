"""What the sidecar hands to its decision log."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from serve.assignment import CompiledPolicy
from serve.fakes import FakeValueClient
from serve.policies import CONFIGURED, Snapshot
from serve.policy import Policy
from tests.support.decisions import read_log
from tests.unit.serve.support import STATE, SURFACE, Rig, config, rig
from triton_models.errors import UpstreamUnavailableError

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def explore(r: Rig, share: float) -> None:
    """Put a policy in force that explores."""
    policy = Policy.model_validate(
        {
            "version": 7,
            "arms": [{"name": "all", "choice": [0.7, 0.3]}],
            "exploration": {"share": share, "cap": share},
            "author": "a",
            "reason": "b",
            "created_at": 0.0,
            "surface_fingerprint": SURFACE.fingerprint,
            "frontier_fingerprint": "f" * 64,
        }
    )
    compiled = CompiledPolicy(SURFACE, policy)
    r.sidecar.policies.swap(Snapshot(compiled=compiled, activation=CONFIGURED))


def test_answers_become_rows(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    answers: dict[str, Any] = {}

    async def main() -> None:
        settings = config(decision_log={"folder": str(folder), "sample_rate": 1.0, "min_free_bytes": 0})
        async with rig(settings, value=FakeValueClient(SURFACE, action=4)) as r:
            body = {"user_id": "u1", "cohort": "core", "request_id": "chosen"}
            answers["chosen"] = await r.rank(**body)
            response = await r.client.post(
                "/v1/weights", {"request_id": "traced", "state": STATE}, {"traceparent": TRACE}
            )
            answers["traced"] = response.json()
            answers["bad state"] = await r.rank(request_id="bad state", state={**STATE, "history": [1]})
            explore(r, 1.0)
            answers["explored"] = await r.rank(request_id="explored")
            r.value.error = UpstreamUnavailableError("gone")
            explore(r, 0.0)
            answers["down"] = await r.rank(request_id="down")
            assert (await r.client.post("/v1/rank", {"request_id": "refused"})).status == 422
            report = (await r.client.get("/readyz")).json()["decision_log"]
            assert report["written"] + report["queue_records"] == 5
            metrics = (await r.client.get("/metrics")).body.decode()
            assert "puts_decision_log_written_total" in metrics

    asyncio.run(main())
    rows = {row["request_id"]: row for row in read_log(folder).to_pylist()}
    assert set(rows) == set(answers)
    for name, row in rows.items():
        answer = answers[name]
        for field in ("action", "source", "reason", "arm", "policy_version", "propensity"):
            assert row[field] == answer[field], (name, field)
        assert row["weight_p2p"] == answer["weights"]["p2p"]
        assert row["total_ms"] == answer["timings_ms"]["total"]
        assert row["surface_fingerprint"] == SURFACE.fingerprint
    chosen, traced, explored = rows["chosen"], rows["traced"], rows["explored"]
    assert (chosen["user_id"], chosen["cohort"], chosen["route"], chosen["run_id"]) == (
        *("u1", "core", "rank"),
        "fake",
    )
    assert (traced["user_id"], traced["route"], traced["trace_id"]) == (None, "weights", TRACE.split("-")[1])
    assert rows["bad state"]["reason"] == "state_invalid"
    assert rows["bad state"]["user_embedding"] is None
    assert (explored["explored"], explored["propensity"], explored["run_id"]) == (True, 1 / 9, None)
    assert explored["frontier_fingerprint"] == "f" * 64
    assert explored["user_embedding"] is not None
    assert rows["down"]["reason"] == "unavailable"


def test_a_disk_that_fails_harms_no_request(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("a file where the folder should be")

    async def main() -> None:
        settings = config(decision_log={"folder": str(tmp_path / "log"), "sample_rate": 1.0, "flush_s": 0.01})
        async with rig(settings) as r:
            for _ in range(20):
                assert (await r.rank())["source"] == "value_network"
            assert r.sidecar.decisions is not None
            while not r.sidecar.decisions.dropped["write_error"]:
                await asyncio.sleep(0.01)
            assert (await r.client.get("/readyz")).status == 200

    asyncio.run(main())
