"""The sidecar on real parts. What the models answer is known (see models.py): with λ = (1, 0) the last
action of the grid, and the candidates with the largest ids first."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml

from serve.dashboard import filled_in, queries
from serve.schema import RankAnswer
from serve.up import BESIDE_RANKER_NICENESS, cores_beside_ranker
from tests.integration.serve.conftest import Stack
from tests.support.decisions import logged_ids, read_log
from tests.support.prometheus import (
    NO_PROMETHEUS,
    PROMETHEUS,
    exposed,
    prometheus_running,
    what_is_wrong,
)
from triton_models.surface import Surface

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE_ID}-00f067aa0ba902b7-01"

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


def kill_value_network(stack: Stack) -> list[dict[str, Any]]:
    """Kill it, and go on asking until it has been missed and is in use again; the answers."""
    os.kill(value_server(stack).pid, signal.SIGKILL)
    answers: list[dict[str, Any]] = []
    deadline = time.monotonic() + 30
    while not any(answer["reason"] for answer in answers) or answers[-1]["reason"] is not None:
        assert time.monotonic() < deadline, [answer["reason"] for answer in answers]
        status, answer = stack.post("/v1/rank", request(stack.surface))
        assert status == 200, answer
        answers.append(answer)
        time.sleep(0.02)
    return answers


def place(process: psutil.Process) -> tuple[int, tuple[int, ...]]:
    """Niceness and cores of a tritonserver and of its model process alike."""
    family = [process, *(child for child in process.children() if child.name().startswith("triton"))]
    places = {(int(member.nice()), tuple(sorted(os.sched_getaffinity(member.pid)))) for member in family}
    assert len(family) > 1 and len(places) == 1, places
    return places.pop()


def test_a_killed_value_network_costs_no_ranking_and_comes_back(stack: Stack) -> None:
    mine, cores = int(psutil.Process().nice()), cores_beside_ranker() or tuple(os.sched_getaffinity(0))
    steps_back = (min(19, mine + BESIDE_RANKER_NICENESS), cores)
    assert place(value_server(stack)) == steps_back
    answers = kill_value_network(stack)
    assert place(value_server(stack)) == steps_back
    assert {tuple(answer["items"]) for answer in answers} == {(9, 7, 5)}
    missed = [answer for answer in answers if answer["reason"] is not None]
    assert {answer["reason"] for answer in missed} <= {"unavailable", "late", "breaker_open"}
    assert all(answer["weights"] == {"repin": 91.6, "p2p": 9.1} for answer in missed)


def some_traffic(stack: Stack) -> None:
    body = request(stack.surface)
    stack.post("/v1/rank", body)
    stack.post("/v1/rank", {**body, "control": False})
    stack.post("/v1/rank", {**body, "k": 0})
    without = {**body, "state": {k: v for k, v in body["state"].items() if k != "history"}}
    assert stack.post("/v1/rank", without)[1]["reason"] == "state_incomplete"
    stack.post("/v1/weights", {"state": body["state"]})


def drift(stack: Stack) -> Any:
    return json.loads(stack.get("/v1/drift"))


def test_a_ranker_whose_scores_shift_crosses_the_limit(stack: Stack) -> None:
    # The ranker scores id / 1e6: other ids are other scores, as from a refreshed ranker.
    deadline = time.monotonic() + 60
    assert stack.post("/v1/drift/baseline", {"author": "a test"})[0] == 200
    number, shift, state = drift(stack)["reference"]["number"], 0, drift(stack)
    levels = []
    while "act" not in levels:
        assert time.monotonic() < deadline, state
        body = request(stack.surface, candidates=[shift + i for i in range(1, 40)])
        assert stack.post("/v1/rank", body)[0] == 200
        state = drift(stack)
        if state["reference"]["author"] == "a test (unnamed operator)" and state["reference"]["complete"]:
            levels.append(state["level"])
            shift = 15 if levels.count("ok") > 20 and state["requests"] > 20 else shift
    assert levels[0] == "ok"
    assert state["reference"]["number"] >= number
    assert state["indices"]["score:repin"] > 0.25
    assert state["indices"]["score:p2p"] < 0.01  # nothing but half a row in empty bins
    assert "use static weights" in state["recommendation"]
    assert json.loads(stack.get("/v1/policy"))["drift"] is not None
    found = re.search(r'^puts_drift\{what="score:repin"\} (\S+)$', stack.get("/metrics").decode(), re.M)
    assert found and float(found[1]) > 0.25
    texts = "".join(path.read_text() for path in stack.log_dir.glob("sidecar-*.log"))
    told = [line for line in texts.splitlines() if "drift: score:repin" in line and "use static" in line]
    assert told


@pytest.fixture(scope="module")
def seen_trouble(stack: Stack) -> Stack:
    """The stack after a fault of its own: counters of fallbacks and breakers begin with the first one."""
    kill_value_network(stack)
    return stack


def test_every_query_of_the_dashboard_names_what_the_running_system_exposes(seen_trouble: Stack) -> None:
    stack = seen_trouble
    some_traffic(stack)
    texts = []
    for url in stack.ready["metrics"].values():
        with urllib.request.urlopen(url, timeout=20) as response:
            texts.append(response.read().decode())
    known = exposed(*texts)
    wrong = {title: found for title, q in queries() if (found := what_is_wrong(filled_in(q), known))}
    assert wrong == {}


@pytest.mark.skipif(PROMETHEUS is None, reason=NO_PROMETHEUS)
def test_every_query_of_the_dashboard_is_answered_by_a_real_prometheus(
    seen_trouble: Stack, tmp_path: Path
) -> None:
    stack = seen_trouble
    with prometheus_running(tmp_path, stack.ready["metrics"]) as prometheus:
        deadline = time.monotonic() + 60
        empty = ["not asked yet"]
        while empty:
            assert time.monotonic() < deadline, empty
            some_traffic(stack)
            answers = [(q, prometheus.values(filled_in(q, interval="10s"))) for _, q in queries()]
            empty = [q for q, values in answers if not any(math.isfinite(value) for value in values)]
        at_most = [max(v) for q, v in answers if ("/ sum(" in q or "/ (sum(" in q) and "on ()" not in q]
        assert at_most
        assert max(at_most) <= 1.01  # shares


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
    rows = {row["request_id"]: row for row in read_log(folder).to_pylist()}
    assert [name for name in logged_ids(folder) if name in names] == sorted(names)
    row = rows["logged-3"]
    assert row["run_id"] == "stand-in"
    assert row["context_device"] == "ipad"
    assert row["history_action"] == ["save"]
    while not answers(stack):  # the next test wants the new replica
        assert time.monotonic() < deadline
        time.sleep(0.1)


def answers(stack: Stack) -> bool:
    try:
        return bool(stack.get("/healthz"))
    except OSError:
        return False


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


def test_a_body_that_trickles_holds_no_place(stack: Stack) -> None:
    host, port = stack.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as slow:
        slow.sendall(b"POST /v1/rank HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n{")
        assert stack.post("/v1/rank", request(stack.surface))[0] == 200
        answer = b""
        while part := slow.recv(4096):  # until the server closes
            answer += part
    assert answer.startswith(b"HTTP/1.1 408")
    assert b'"too_slow"' in answer


SECRETS = {"user_id": "user-0f8fad5b", "token": "tok-7c9e6679", "body": "word-d9428888"}


def test_the_log_names_the_request_and_no_secret(stack: Stack) -> None:
    """Faults on behalf of a request with secrets in it; the logs are read when all is over, below."""
    body = request(stack.surface, user_id=SECRETS["user_id"], request_id="a-request-to-find")
    body["state"]["context"]["device"] = SECRETS["body"]
    headers = {"authorization": f"Bearer {SECRETS['token']}", "traceparent": PARENT}
    os.kill(value_server(stack).pid, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while stack.post("/v1/rank", body, headers)[1]["reason"] is None:
        assert time.monotonic() < deadline
    stack.post("/v1/rank", {**body, "state": {}}, headers)
    stack.post("/v1/rank", {**body, "user_id": [SECRETS["user_id"]]}, headers)

    def line_found() -> bool:
        texts = [path.read_text() for path in stack.log_dir.glob("sidecar-*.log")]
        lines = [json.loads(line) for line in "".join(texts).splitlines()]
        found = [line for line in lines if line["request_id"] == "a-request-to-find"]
        return any(line["trace_id"] == TRACE_ID and line["reason"] and line["arm"] for line in found)

    while not line_found():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def ray_session(children: list[psutil.Process]) -> Path:
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):  # zombies among them
            if found := re.search(r"session[-_]dir=(\S+)", " ".join(child.cmdline())):
                return Path(found[1])
    raise AssertionError("no process of Ray's names its session folder")


def test_sigterm_ends_everything_that_was_started(stack: Stack) -> None:
    children = psutil.Process(stack.process.pid).children(recursive=True)
    assert children
    session = ray_session(children)
    stack.process.terminate()
    assert stack.process.wait(timeout=60) == 0
    _, alive = psutil.wait_procs(children, timeout=20)
    assert alive == []
    # Now that everybody has written what there was to write: no secret in any log, Ray's own among them.
    files = [stack.log, *(p for folder in (stack.log_dir, session) for p in folder.rglob("*") if p.is_file())]
    assert any(path.name.startswith("sidecar-") for path in files)
    assert any(path.name.startswith("replica_") or "worker-" in path.name for path in files)
    text = b"".join(path.read_bytes() for path in files)
    assert b"a-request-to-find" in text
    for secret in SECRETS.values():
        assert secret.encode() not in text, secret
