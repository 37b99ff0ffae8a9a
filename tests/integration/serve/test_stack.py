"""The sidecar on real parts. What the models answer is known (see models.py): with λ = (1, 0) the last
action of the grid, and the candidates with the largest ids first."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import yaml

from serve.schema import RankAnswer
from tests.integration.serve.conftest import Stack
from tests.support.decisions import logged_ids, read_log
from triton_models.surface import Surface

CANDIDATES = [7, 3, 9, 1, 5]


def request(surface: Surface, **changes: Any) -> dict[str, Any]:
    history = surface.state.history
    assert history is not None
    state = {
        "user_embedding": [0.1] * surface.state.user_embedding,
        "history": {"embedding": [[0.0] * history.embedding], "action": ["save"], "age_s": [3.0]},
        "context": {"device": "ipad"},
    }
    return {"state": state, "candidates": CANDIDATES, "k": 3, **changes}


def test_ranks_with_the_chosen_weights(stack: Stack) -> None:
    status, answer = stack.post("/v1/rank", request(stack.surface))
    assert status == 200
    RankAnswer.model_validate(answer)
    assert answer["items"] == [9, 7, 5]
    assert (answer["source"], answer["reason"], answer["action"]) == ("value_network", None, 48)
    assert answer["weights"] == {"repin": 200.0, "p2p": 30.0}
    assert answer["scores"][0] == 200.0 * float(np.float32(9) * np.float32(1e-6))
    status, answer = stack.post("/v1/rank", request(stack.surface, control=False))
    assert (status, answer["items"], answer["reason"]) == (200, [9, 7, 5], "control_off")
    assert answer["weights"] == {"repin": 91.6, "p2p": 9.1}


def test_weights_bad_requests_health_and_metrics(stack: Stack) -> None:
    body = request(stack.surface)
    del body["candidates"], body["k"]
    status, answer = stack.post("/v1/weights", body)
    assert (status, answer["action"]) == (200, 48)
    assert stack.post("/v1/rank", {"candidates": [1]})[0] == 422
    status, answer = stack.post("/v1/rank", request(stack.surface, candidates=[1, 1]))
    assert status == 422
    assert "twice" in answer["error"]["message"]
    assert json.loads(stack.get("/healthz")) == {"alive": True}
    ready = json.loads(stack.get("/readyz"))
    assert (ready["degraded"], ready["value_network"][0]["run_id"]) == (None, "stand-in")
    metrics = stack.get("/metrics").decode()
    assert 'puts_actions_total{action="48"}' in metrics
    assert 'puts_value_network_up{address="' in metrics


def test_locust(stack: Stack, tmp_path: Path) -> None:
    from benchmarks.feed.config import WorldConfig
    from benchmarks.feed.world import World, save_world

    save_world(World(WorldConfig(seed=1, requests=1000, days=21), stack.surface), tmp_path)
    command = [sys.executable, "-m", "benchmarks", "locust", "--host", stack.address, "--logs", str(tmp_path)]
    command += ["--users", "2", "--duration", "6", "--out", str(tmp_path / "load")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((tmp_path / "load" / "summary.json").read_text())
    assert summary["failures"] == 0
    assert summary["control_on"]["requests"] == summary["control_off"]["requests"] > 10
    assert summary["choices"] > 10
    assert summary["on_minus_off_ms"]["p50_ms"]["interval"] is not None
    for name in ("report.html", "locust_stats.csv"):
        assert (tmp_path / "load" / name).stat().st_size > 0


def value_server(stack: Stack) -> psutil.Process:
    port = stack.ready["triton"].rsplit(":", 1)[1]
    servers = [
        process
        for process in psutil.process_iter(["cmdline"])
        if any(str(stack.repository) in word for word in process.info["cmdline"] or ())
        and any(port in word for word in process.info["cmdline"] or ())
        and "tritonserver" in Path((process.info["cmdline"] or [""])[0]).name
    ]
    assert len(servers) == 1, servers
    return servers[0]


def test_a_killed_value_network_costs_no_ranking_and_comes_back(stack: Stack) -> None:
    os.kill(value_server(stack).pid, signal.SIGKILL)
    reasons = []
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        status, answer = stack.post("/v1/rank", request(stack.surface))
        assert (status, answer["items"]) == (200, [9, 7, 5])
        if answer["reason"] is None and reasons:
            break
        if answer["reason"] is not None:
            assert answer["weights"] == {"repin": 91.6, "p2p": 9.1}
            reasons.append(answer["reason"])
        time.sleep(0.02)
    assert set(reasons) <= {"unavailable", "late", "breaker_open"}
    assert reasons
    assert answer["reason"] is None


def test_decisions_of_a_killed_replica_are_in_the_log(stack: Stack) -> None:
    names = [f"logged-{i}" for i in range(40)]
    for name in names:
        assert stack.post("/v1/rank", request(stack.surface, request_id=name))[0] == 200
    deadline = time.monotonic() + 90
    while json.loads(stack.get("/readyz"))["decision_log"]["queue_records"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    family = psutil.Process(stack.process.pid).children(recursive=True)
    (replica,) = [p for p in family if "ServeReplica" in " ".join(p.cmdline())]
    replica.kill()
    folder = stack.log.parent / "decisions"
    while not set(names) <= set(logged_ids(folder)):
        assert time.monotonic() < deadline, stack.log.read_text()[-3000:]
        time.sleep(0.2)
    # Locust's requests, which are in the log, too, repeat their ids.
    rows = {row["request_id"]: row for row in read_log(folder).to_pylist()}
    assert [name for name in logged_ids(folder) if name in names] == sorted(names)
    row = rows["logged-3"]
    assert row["run_id"] == "stand-in"
    assert row["context_device"] == "ipad"
    assert row["history_action"] == ["save"]


def test_up_refuses_another_surface(stack: Stack, tmp_path: Path) -> None:
    data = stack.surface.to_dict()
    data["controlled"][1]["maximum"] = 31.0
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump(data, sort_keys=False))
    for where in (["--triton", stack.ready["triton"]], ["--repository", str(stack.repository)]):
        command = [sys.executable, "-m", "serve", "up", *where, "--surface", str(other), "--port", "0"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 2
        assert "maximum" in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


def test_sigterm_ends_everything_that_was_started(stack: Stack) -> None:
    children = psutil.Process(stack.process.pid).children(recursive=True)
    assert children
    stack.process.terminate()
    assert stack.process.wait(timeout=60) == 0
    _, alive = psutil.wait_procs(children, timeout=20)
    assert alive == []
