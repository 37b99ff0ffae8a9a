"""R3: change and roll-back of the policy under load, on a real Ray Serve with two replicas."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest

from benchmarks.stand_ins.behaviour import Behaviour
from benchmarks.stand_ins.process import StandInProcess
from tests.support.frontiers import frontier_data
from triton_models.surface import Surface, load_surface

SURFACE_FILE = Path(__file__).parents[3] / "benchmarks" / "surfaces" / "small.yaml"
TOKEN = "operator-token-of-this-test"
REPLICAS = 2


@dataclass
class Load:
    """Clients in threads, each with one connection; what they were answered, and when."""

    address: str
    body: bytes
    clients: int = 4
    seen: list[tuple[float, int]] = field(default_factory=list)
    """Time of each answer's arrival, version in it."""
    failures: list[str] = field(default_factory=list)

    def __enter__(self) -> Load:
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(self.clients)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        connection = http.client.HTTPConnection(urlsplit(self.address).netloc, timeout=20)
        while not self._stop.is_set():
            try:
                connection.request("POST", "/v1/weights", self.body, {"content-type": "application/json"})
                answer = connection.getresponse()
                data = json.loads(answer.read())
                if answer.status != 200:
                    self.failures.append(f"{answer.status} {data}")
                else:
                    self.seen.append((time.monotonic(), data["policy_version"]))
            except Exception as error:
                self.failures.append(repr(error))
                connection.close()
        connection.close()

    def more(self, count: int = 100) -> None:
        """Wait for more answers."""
        enough = len(self.seen) + count
        until(lambda: len(self.seen) >= enough or bool(self.failures))


def until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def policy_door(address: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "serve", "policy", *words, "--url", address]
    environment = {**os.environ, "PUTS_TOKEN": TOKEN}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)


def change(address: str, path: str, body: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    """When it was called, and the answer."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=20)
    headers = {"content-type": "application/json", "authorization": f"Bearer {TOKEN}"}
    called = time.monotonic()
    connection.request("POST", path, json.dumps(body), headers)
    answer = connection.getresponse()
    data = json.loads(answer.read())
    connection.close()
    assert answer.status in (200, 201), data
    return called, data


def get(address: str, path: str) -> bytes:
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=20)
    connection.request("GET", path, headers={"authorization": f"Bearer {TOKEN}"})
    body = connection.getresponse().read()
    connection.close()
    return body


@contextmanager
def sidecar(folder: Path, *options: str) -> Iterator[tuple[str, int]]:
    ready_file = folder / "ready.json"
    ready_file.unlink(missing_ok=True)
    command = [sys.executable, "-m", "serve", "up", "--surface", str(SURFACE_FILE), "--port", "0"]
    command += ["--policy-store", "env:PUTS_TEST_STORE", "--operator-tokens", "env:PUTS_TEST_TOKENS"]
    command += ["--budget-ms", "500", "--ready-file", str(ready_file), *options]
    environment = {
        **os.environ,
        "PUTS_TEST_STORE": f"sqlite:///{folder / 'policies.db'}",
        "PUTS_TEST_TOKENS": f"ada:{TOKEN}",
        "XDG_STATE_HOME": str(folder),
    }
    with (folder / "up.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
    try:
        until(lambda: ready_file.exists() or process.poll() is not None, 120)
        assert process.poll() is None, (folder / "up.log").read_text()
        yield json.loads(ready_file.read_text())["address"], process.pid
    finally:
        process.terminate()
        process.wait(timeout=60)


def replicas(pid: int) -> list[psutil.Process]:
    children = psutil.Process(pid).children(recursive=True)
    found = []
    for child in children:
        with suppress(psutil.NoSuchProcess):  # a zombie is one of them
            if "ServeReplica" in " ".join(child.cmdline()):
                found.append(child)
    return found


def answered(address: str, path: str) -> bytes | None:
    try:
        return get(address, path)
    except (OSError, http.client.HTTPException):
        return None


def example(surface: Surface) -> bytes:
    return json.dumps(
        {"user_id": "u", "state": {"user_embedding": [0.0] * surface.state.user_embedding}}
    ).encode()


@pytest.fixture(scope="module")
def network() -> Iterator[StandInProcess]:
    with StandInProcess("value_network", SURFACE_FILE, Behaviour()) as process:
        yield process


def test_change_and_roll_back_under_load(tmp_path: Path, network: StandInProcess) -> None:
    surface = load_surface(SURFACE_FILE)
    frontier = tmp_path / "frontier.json"
    frontier.write_text(json.dumps(frontier_data(surface)))
    with sidecar(tmp_path, "--triton", network.address, "--replicas", str(REPLICAS)) as (address, pid):
        assert len(replicas(pid)) == REPLICAS
        with Load(address, example(surface)) as load:
            load.more()
            apply = ["apply", "--frontier", str(frontier), "--operating-point", "knee", "--reason", "a test"]
            done = policy_door(address, *apply)
            assert done.returncode == 0, done.stderr
            assert "policy 1 is in force (it was 0); by ada" in done.stdout
            static = {"policy": {"arms": [{"name": "off", "choice": "static"}]}, "reason": "a test"}
            old_s = []
            for path, body, old, new in (
                ("/v1/policies", static, 1, 2),
                ("/v1/policy/rollback", {"reason": "no good"}, 2, 1),
            ):
                until(lambda v=old: all(seen[1] == v for seen in load.seen[-50:]))
                called, answer = change(address, path, body)
                assert answer["version"] == new
                load.more(300)
                until(lambda c=called: time.monotonic() > c + 1.2)
                last_old = max((at for at, version in load.seen if version == old), default=called)
                old_s.append(last_old - called)
                assert {version for at, version in load.seen if at > called} <= {old, new}
                assert load.seen[-1][1] == new
            assert max(old_s) <= 1.0, old_s
            assert load.failures == []
        assert "puts_policy_version_oldest 1.0" in get(address, "/metrics").decode()
        refused = policy_door(address, *apply, "--token", str(frontier))
        assert (refused.returncode, "not known" in refused.stderr) == (2, True), refused.stderr
        # Both replicas die: the new ones have nothing but the store.
        old = replicas(pid)
        for replica in old:
            os.kill(replica.pid, signal.SIGKILL)
        until(lambda: len(set(replicas(pid)) - set(old)) == REPLICAS)
        until(lambda: answered(address, "/healthz") == b'{"alive":true}')
        shown = policy_door(address, "show")
        assert json.loads(shown.stdout)["version"] == 1, shown.stderr
        listed = policy_door(address, "list").stdout.splitlines()
        assert [line[:8] for line in listed] == [
            *("      2 ", "*     1 ", "in force", "      1 ", "      2 ", "      1 ")
        ]
        with Load(address, example(surface)) as load:
            load.more()
        assert {version for _, version in load.seen} == {1}
    assert TOKEN not in (tmp_path / "up.log").read_text()
    sys.stdout.write(f"last answer of the old version: {[round(s, 3) for s in old_s]} s after the call\n")
