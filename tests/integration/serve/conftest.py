"""One real stack for the room's tests: two tritonservers and Ray Serve, made by ``python -m serve up``."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.integration.serve.models import publish_ranker, publish_value_network
from tests.support.up import wait_until_ready
from triton_models.surface import Surface, load_surface

HOMEFEED = Path(__file__).parents[3] / "benchmarks" / "surfaces" / "homefeed.yaml"


@dataclass(frozen=True)
class Stack:
    address: str
    process: subprocess.Popen[bytes]
    ready: dict[str, Any]
    surface: Surface
    repository: Path
    log: Path
    log_dir: Path

    def post(self, path: str, data: Any, headers: dict[str, str] | None = None) -> tuple[int, Any]:
        request = urllib.request.Request(
            self.address + path,
            data=json.dumps(data).encode(),
            headers={"content-type": "application/json", **(headers or {})},
        )
        try:
            with urllib.request.urlopen(request, timeout=20) as response:
                return response.status, json.loads(response.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(self.address + path, timeout=20) as response:
            body: bytes = response.read()
            return body


@pytest.fixture(scope="session")
def homefeed() -> Surface:
    return load_surface(HOMEFEED)


@pytest.fixture(scope="session")
def repositories(tmp_path_factory: pytest.TempPathFactory, homefeed: Surface) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("repositories")
    publish_value_network(root / "value", homefeed)
    publish_ranker(root / "ranker", homefeed)
    return root / "value", root / "ranker"


@pytest.fixture(scope="module")
def stack(
    tmp_path_factory: pytest.TempPathFactory, repositories: tuple[Path, Path], homefeed: Surface
) -> Iterator[Stack]:
    root = tmp_path_factory.mktemp("stack")
    ready_file, log = root / "ready.json", root / "up.log"
    value, ranker = repositories
    command = [sys.executable, "-m", "serve", "up", "--repository", str(value)]
    command += ["--ranker-repository", str(ranker), "--scalarization", "1,0", "--budget-ms", "2000"]
    command += ["--port", "0", "--ready-file", str(ready_file), "--log-dir", str(root / "logs")]
    (root / "logs").mkdir()
    # Everything is logged, and a replica's spool is looked through soon after it has died.
    settings: dict[str, Any] = {"limits": {"body_timeout_s": 1.0}}
    settings |= {"decision_log": {"folder": "decisions", "sample_rate": 1.0, "sweep_s": 0.5}}
    # A few requests say what the ranker's scores are; whoever is on this machine may begin afresh.
    settings |= {
        "drift": {"reference_requests": 20, "reference_s": 0, "minimum_requests": 10, "check_s": 0.1}
    }
    settings |= {"access": {"allow_local_changes": True}}
    (root / "sidecar.yaml").write_text(json.dumps(settings))
    command += ["--config", str(root / "sidecar.yaml")]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
    try:
        ready = wait_until_ready(process, ready_file, log)
        yield Stack(ready["address"], process, ready, homefeed, value, log, root / "logs")
    finally:
        process.terminate()
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
