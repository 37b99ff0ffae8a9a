"""Versions in the real tritonserver: rolled out and back under load, verified; what a killed export left."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.integration.triton_models.conftest import Exported
from tests.support.inference import infer, row
from tests.support.runs import write_untrained_run
from triton_models import export
from triton_models.checks import surface_of
from triton_models.cli import main
from triton_models.config_pbtxt import config_parameters
from triton_models.parity import Cases, load_cases, pack_cases
from triton_models.published import CASES_FILE
from triton_models.repository import publish_model, require_model, version_config
from triton_models.selection import selection_config
from triton_models.server import EmbeddedServer
from triton_models.supervise import Supervisor, SupervisorConfig
from triton_models.surface import Surface
from triton_models.tensors import VALUE_NETWORK, input_specs, output_specs

CLIENTS = 6
ROWS = 16


@dataclass(frozen=True)
class Deployment:
    """A server of its own on a repository of two versions: 1 of ``runs[0]``, 2 of ``runs[1]``."""

    server: EmbeddedServer
    repository: Path
    runs: tuple[Path, Path]
    inputs: dict[str, np.ndarray]
    answers: dict[int, np.ndarray]
    """Version → its action values for ``inputs``."""

    @property
    def selected(self) -> int:
        return require_model(self.repository, VALUE_NETWORK).served

    def serving(self) -> int:
        """The version whose answers the server gives to a request that names none."""
        import tritonclient.grpc as grpc

        with grpc.InferenceServerClient(self.server.grpc_address) as client:
            got = infer(client, VALUE_NETWORK, self.inputs)["action_values"]
        return self.version_of(got, slice(None))

    def version_of(self, got: np.ndarray, rows: Any) -> int:
        found = [
            version
            for version, want in self.answers.items()
            if got.shape == want[rows].shape and np.abs(got - want[rows]).max() <= 1e-5
        ]
        assert len(found) == 1, "an answer of neither version"
        return found[0]

    def door(self, command: str, *options: str) -> int:
        return main([command, self.server.grpc_address, "--repository", str(self.repository), *options])


@pytest.fixture(scope="module")
def deployment(
    exported: Exported, surface: Surface, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    folder = tmp_path_factory.mktemp("rollout")
    repository = folder / "repository"
    shutil.copytree(exported.repository / VALUE_NETWORK, repository / VALUE_NETWORK)
    other = write_untrained_run(surface, folder / "other", seed=5)
    report = export.export_run(other, repository, hold=True)
    assert (report.version, report.served) == (2, 1)
    inputs = export.parity_cases(surface, random_cases=ROWS)
    inputs = {name: array[:ROWS] for name, array in inputs.items()}
    models = {v: (repository / VALUE_NETWORK / str(v) / "model.onnx").read_bytes() for v in (1, 2)}
    answers = {v: export.run_onnx(model, inputs)["action_values"] for v, model in models.items()}
    with EmbeddedServer(repository) as server:
        yield Deployment(server, repository, (exported.run, other), inputs, answers)


@dataclass
class Traffic:
    """Clients that send one request after the other and name no version."""

    deployment: Deployment
    seen: list[tuple[float, float, int]] = field(default_factory=list)
    """(sent, answered, version that answered)."""
    problems: list[str] = field(default_factory=list)

    def __enter__(self) -> Traffic:
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._send, args=(i,)) for i in range(CLIENTS)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _send(self, number: int) -> None:
        import tritonclient.grpc as grpc

        with grpc.InferenceServerClient(self.deployment.server.grpc_address) as client:
            while not self._stop.is_set():
                i = number % ROWS
                number += 1
                sent = time.monotonic()
                try:
                    got = infer(client, VALUE_NETWORK, row(self.deployment.inputs, i))["action_values"]
                    version = self.deployment.version_of(got, slice(i, i + 1))
                except Exception as error:  # any failure at all is what the test is about
                    self.problems.append(repr(error))
                    continue
                self.seen.append((sent, time.monotonic(), version))

    def between(self, began: float, ended: float) -> set[int]:
        """Versions that answered requests sent and answered in this time."""
        return {version for sent, answered, version in self.seen if began <= sent and answered <= ended}


def test_roll_out_and_back_lose_no_request(
    deployment: Deployment, capsys: pytest.CaptureFixture[str]
) -> None:
    moments = []
    with Traffic(deployment) as traffic:
        for command, version in [("rollout", 2), ("rollback", 1)] * 2:
            time.sleep(0.25)
            began = time.monotonic()
            assert deployment.door(command) == 0, capsys.readouterr().err
            moments.append((began, time.monotonic(), version))
            assert deployment.selected == version
            time.sleep(0.25)
    assert traffic.problems == []
    assert len(traffic.seen) > 200
    ends = [began for began, _, _ in moments[1:]] + [time.monotonic()]
    for (began, ended, version), next_began in zip(moments, ends, strict=True):
        assert traffic.between(ended, next_began) == {version}, "after the command, only the new one"
        assert traffic.between(began, ended) <= {1, 2}
    assert traffic.between(0.0, moments[0][0]) == {1}
    out = capsys.readouterr().out
    assert "version 2 beside 1, checked with" in out
    assert "undo: python -m triton_models rollback" in out


def test_a_replaced_server_comes_back_with_the_selected_version(deployment: Deployment) -> None:
    assert deployment.door("rollout") == 0
    # Patient, so that a busy machine is not taken for a dead model; a dead process is replaced at once.
    with Supervisor(deployment.server, SupervisorConfig(probe_timeout_s=20.0)) as supervisor:
        os.kill(deployment.server.pid, signal.SIGKILL)
        deadline = time.monotonic() + 20
        while supervisor.replacements == 0 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert supervisor.replacements == 1
        assert (deployment.serving(), deployment.selected) == (2, 2)
        # It still knows where it came from.
        assert deployment.door("rollback") == 0
        assert (deployment.serving(), deployment.selected) == (1, 1)
        assert supervisor.replacements == 1


def publish_candidate(deployment: Deployment, onnx_bytes: bytes, cases: Cases) -> int:
    parameters = config_parameters(version_config(deployment.repository, VALUE_NETWORK, 1))
    surface = surface_of(parameters, source="test")
    return publish_model(
        deployment.repository,
        name=VALUE_NETWORK,
        onnx_bytes=onnx_bytes,
        inputs=input_specs(surface),
        outputs=output_specs(surface),
        parameters={key: parameters[key] for key in ("surface", "surface_fingerprint", "run_id")},
        files={CASES_FILE: pack_cases(cases)},
        keep=20,
        select=False,
    )


def eventually_ready(server: EmbeddedServer) -> bool:
    import tritonclient.grpc as grpc

    deadline = time.monotonic() + 10
    with grpc.InferenceServerClient(server.grpc_address) as client:
        while not client.is_server_ready():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
    return True


def test_broken_candidates_leave_the_old_one(
    deployment: Deployment, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = deployment.repository / VALUE_NETWORK
    good = (folder / "1" / "model.onnx").read_bytes()
    cases = load_cases(folder / "1" / CASES_FILE)
    assert deployment.door("rollout", "--version", "1") == 0
    others = publish_candidate(deployment, (folder / "2" / "model.onnx").read_bytes(), cases)
    damaged = publish_candidate(deployment, good[: len(good) // 2], cases)
    absent = publish_candidate(deployment, good, cases)
    (folder / str(absent) / "model.onnx").unlink()
    capsys.readouterr()
    with Traffic(deployment) as traffic:
        for version, message in [
            (others, "differ from torch"),
            (damaged, "ONNX Runtime cannot load it"),
            (absent, "model.onnx: is missing"),
        ]:
            assert deployment.door("rollout", "--version", str(version)) == 2
            error = capsys.readouterr().err
            assert error.count("\n") == 1 and message in error, error
            assert deployment.selected == 1
    assert traffic.problems == []
    assert {version for *_, version in traffic.seen} == {1}
    assert deployment.serving() == 1
    assert eventually_ready(deployment.server), "a failed load does not leave the server not ready for ever"
    for version in (others, damaged, absent):
        shutil.rmtree(folder / str(version))


def test_verify_knows_the_evaluated_model(
    deployment: Deployment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert deployment.door("rollout", "--version", "2") == 0
    file = tmp_path / "verify.json"
    assert deployment.door("verify", "--requests", "10", "--concurrency", "8", "--json", str(file)) == 0
    out = capsys.readouterr().out
    assert "VERDICT   yes" in out and "effective batch size" in out
    told = json.loads(file.read_text())
    assert told["is_evaluated_model"] is True and told["differences"] == []
    assert told["largest_difference"] <= 1e-5
    assert [item["batch_size"] for item in told["latency"]] == [1, 2, 4, 8, 16, 32, 64]
    assert all(item["failures"] == 0 and 0 < item["p50_ms"] <= item["p99_ms"] for item in told["latency"])
    assert all(item["compute_ms"] > 0 for item in told["latency"])
    assert told["load"]["failures"] == 0 and told["load"]["effective_batch_size"] >= 1

    url = deployment.server.grpc_address
    assert main(["verify", url, "--run", str(deployment.runs[1]), "--requests", "0"]) == 0
    assert main(["verify", url, "--run", str(deployment.runs[0]), "--requests", "0"]) == 1
    out = capsys.readouterr().out
    assert "differs   run_id: expected untrained-small-0, the server says untrained-small-5" in out
    assert "differs   action values differ from torch by" in out
    assert out.rstrip().splitlines()[-1].startswith("VERDICT   no")


def test_verify_sees_what_was_selected_but_not_rolled_out(
    deployment: Deployment, capsys: pytest.CaptureFixture[str]
) -> None:
    assert deployment.door("rollout", "--version", "2") == 0
    assert main(["select", "1", "--repository", str(deployment.repository)]) == 0
    assert deployment.door("verify", "--requests", "0") == 1
    assert "differs   version: expected 1, the server serves 2" in capsys.readouterr().out
    assert deployment.door("rollout", "--version", "1") == 0
    assert deployment.door("verify", "--requests", "0") == 0
    assert deployment.door("verify", "--requests", "0", "--version", "2") == 1
    assert main(["versions", str(deployment.repository)]) == 0
    out = capsys.readouterr().out
    assert "*    1  run untrained-small-0" in out and "     2  run untrained-small-5" in out


def test_verify_without_a_server_or_a_model(
    deployment: Deployment, surface: Surface, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", "127.0.0.1:9", "--repository", str(deployment.repository)]) == 2
    assert deployment.door("verify", "--model", "ranker") == 2
    assert main(["verify", deployment.server.grpc_address, "--run", str(tmp_path)]) == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 3
    assert "no Triton answers" in errors and "holds no model ranker" in errors and "no finished run" in errors
    url, run = deployment.server.grpc_address, str(deployment.runs[0])
    assert main(["verify", url, "--run", run, "--model", "absent"]) == 1
    assert "differs   the server serves no model absent" in capsys.readouterr().out


def test_the_onnx_file_says_where_it_comes_from(exported: Exported) -> None:
    import onnx

    model = onnx.load(str(exported.report.folder / "model.onnx"))
    told = {item.key: item.value for item in model.metadata_props}
    parameters = config_parameters(version_config(exported.repository, VALUE_NETWORK, 1))
    assert set(told) == {
        "surface",
        "surface_fingerprint",
        "run_id",
        "data_window",
        "code_version",
        "metrics",
        "precision",
        "value_tolerance",
    }
    assert told == {name: parameters[name] for name in told}


def test_a_killed_export_leaves_what_was_served_before(exported: Exported, tmp_path: Path) -> None:
    """``kill -9`` of the real export at many points; the real server loads what two of them left."""
    template = tmp_path / "template"
    shutil.copytree(exported.repository / VALUE_NETWORK, template / VALUE_NETWORK)
    arguments = [exported.run, exported.report.folder / "model.onnx", template, tmp_path / "deaths"]
    command = [sys.executable, "-m", "tests.support.killed_export", *map(str, arguments)]
    # A forked child of a process with a pool of threads would wait for threads that it does not have.
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    states: dict[tuple[int, tuple[int, ...]], Path] = {}
    deaths = sorted((tmp_path / "deaths").iterdir(), key=lambda path: int(path.name))
    assert len(deaths) >= 4
    for death in deaths:
        model = require_model(death / "repository", VALUE_NETWORK)
        for version in model.versions:
            selection_config(death / "repository", VALUE_NETWORK, version)  # its files are whole
            load_cases(death / "repository" / VALUE_NETWORK / str(version) / CASES_FILE)
        states.setdefault((model.served, model.versions), death / "repository")
    assert set(states) <= {(1, (1,)), (1, (1, 2)), (2, (1, 2))}
    assert {(1, (1,)), (2, (1, 2))} <= set(states), "some died before, some after"
    for served, there in ((1, (1,)), (2, (1, 2))):
        repository = states[served, there]
        with EmbeddedServer(repository) as server:
            assert (
                main(["verify", server.grpc_address, "--repository", str(repository), "--requests", "0"]) == 0
            )
            assert require_model(repository, VALUE_NETWORK).served == served
