"""``sweep --triton``: the frontier through the served model, while it answers live requests."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ray_train.cli import main
from tests.support.inference import infer, row
from tests.support.logs import make_log, write_log
from tests.support.runs import write_untrained_run
from tests.support.surfaces import small_surface
from triton_models.export import export_run, parity_cases
from triton_models.frontier import load_frontier
from triton_models.server import EmbeddedServer
from triton_models.tensors import VALUE_NETWORK

pytestmark = pytest.mark.usefixtures("ray_cluster")
SURFACE = small_surface()
ROWS = 2400


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_log(make_log(SURFACE, ROWS), tmp_path_factory.mktemp("logs"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_untrained_run(SURFACE, tmp_path_factory.mktemp("run") / "run")


@pytest.fixture(scope="module")
def server(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    repository = tmp_path_factory.mktemp("repository")
    export_run(run, repository)
    with EmbeddedServer(repository) as running:
        yield running


class Live(threading.Thread):
    """One client that asks for weights all the time."""

    def __init__(self, address: str) -> None:
        super().__init__(daemon=True)
        self.address, self.seconds, self.failures = address, [], []
        self.ending = threading.Event()

    def run(self) -> None:
        import tritonclient.grpc as grpc

        request = row(parity_cases(SURFACE, random_cases=4), 0)
        client = grpc.InferenceServerClient(self.address)
        while not self.ending.is_set():
            began = time.perf_counter()
            try:
                infer(client, VALUE_NETWORK, request, ["weights"])
            except Exception as error:
                self.failures.append(error)
            self.seconds.append(time.perf_counter() - began)
            time.sleep(0.01)
        client.close()


def test_the_served_model_gives_the_same_frontier_beside_live_traffic(
    logs: Path, run: Path, server: EmbeddedServer
) -> None:
    sweep = ["sweep", str(logs), "--run", str(run), "--bootstrap", "50", "--estimator", "snips"]
    assert main(sweep) == 0
    expected = load_frontier(run)
    live = Live(server.grpc_address)
    live.start()
    time.sleep(1.0)
    alone = len(live.seconds)
    assert main([*sweep, "--triton", server.grpc_address, "--triton-share", "0.5"]) == 0
    beside = live.seconds[alone:]
    live.ending.set()
    live.join()
    got = load_frontier(run)
    assert not live.failures
    assert len(beside) > 20  # how much slower they are is measured by `benchmarks beside`
    assert [point.hits for point in got.points] == [point.hits for point in expected.points]
    for one, other in zip(got.points, expected.points, strict=True):
        np.testing.assert_allclose(list(one.values.values()), list(other.values.values()), rtol=1e-9)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (["--triton", "127.0.0.1:1"], "127.0.0.1:1"),
        (["--triton", "nonsense"], "nonsense"),
        (["--triton", "127.0.0.1:1", "--triton-share", "0"], "--triton-share must lie in (0, 1]"),
    ],
)
def test_a_server_that_cannot_be_asked_is_one_line(
    logs: Path, run: Path, change: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", str(logs), "--run", str(run), *change]) == 2
    error = capsys.readouterr().err
    assert problem in error and error.count("\n") == 1


def test_another_run_is_not_the_one_to_sweep(
    logs: Path, server: EmbeddedServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_untrained_run(SURFACE, tmp_path / "other", seed=4)
    assert main(["sweep", str(logs), "--run", str(other), "--triton", server.grpc_address]) == 2
    assert "serves run untrained-" in capsys.readouterr().err
    assert not (other / "frontier.json").exists()
