"""Real Ray Train on the session's cluster: learning, losing a worker, losing the driver."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from ray_train.fit import CHECKPOINTS, fit
from ray_train.ingest import encode_states
from ray_train.learners import COMMITTEE
from ray_train.settings import FitSettings
from ray_train.telling import told
from tests.support.logs import START, make_log, true_values, write_log
from tests.support.surfaces import small_surface
from triton_models.errors import ConfigurationError, LogError, RunError
from triton_models.runs import load_run

pytestmark = [
    pytest.mark.usefixtures("ray_cluster"),
]

SURFACE = small_surface()
EFFECT = 0.2
NOW = START + timedelta(days=30)
NETWORK = COMMITTEE.network.model_copy(update={"members": 4, "backbone_width": 32, "state_width": 16})
SETTINGS = COMMITTEE.fit_settings(workers=2, epochs=8, batch_size=128, learning_rate=5e-3, seed=3)


@dataclass
class Fitted:
    logs: Path
    run: Path
    lines: list[str]


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # 9001 rows: the workers' shards cannot be equal without leaving a row out.
    return write_log(
        make_log(SURFACE, 9001, effect=EFFECT), tmp_path_factory.mktemp("logs"), row_group_rows=700
    )


@pytest.fixture(scope="module")
def fitted(logs: Path, tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    """An undisturbed fit with two workers."""
    lines: list[str] = []
    run = fit_small(logs, tmp_path_factory.mktemp("runs") / "run", say=lines.append)
    return Fitted(logs, run, lines)


def fit_small(logs: Path, out: Path, say: Callable[[str], None] = lambda line: None, **options: Any) -> Path:
    settings = options.pop("settings", SETTINGS)
    return fit(
        surface=SURFACE, logs=logs, out=out, settings=settings, network=NETWORK, now=NOW, say=say, **options
    )


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_run(run).load_network().state_dict()


def assert_same_run(one: Path, two: Path) -> None:
    first, second = weights(one), weights(two)
    assert list(first) == list(second)
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=0)


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float = 120.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.05)


def train_workers() -> list[psutil.Process]:
    """The training workers of our own cluster: processes below this one."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def test_the_planted_effect_is_learned(fitted: Fitted) -> None:
    run = load_run(fitted.run)
    unseen = make_log(SURFACE, 1000, seed=99)
    state = {name: torch.from_numpy(array) for name, array in encode_states(SURFACE, unseen).items()}
    with torch.inference_mode():
        learned = run.load_network().action_values(state).numpy()
    taste = state["user_embedding"][:, 0].numpy()
    true = true_values(SURFACE, taste, EFFECT)
    for m in range(2):
        assert np.corrcoef(learned[:, :, m].ravel(), true[:, :, m].ravel())[0, 1] > 0.9
    # The best action is known: every weight at its maximum for taste +1, at its minimum for -1.
    best = learned.sum(axis=2).argmax(axis=1)
    assert (best == np.where(taste > 0, SURFACE.num_actions - 1, 0)).mean() > 0.9


def test_the_run_says_what_it_is(fitted: Fitted) -> None:
    manifest = load_run(fitted.run).manifest
    assert manifest.surface_fingerprint == SURFACE.fingerprint
    assert manifest.data.train_window[1] == manifest.data.holdout_window[0]
    assert manifest.data.rows_train + manifest.data.rows_holdout == 9001
    assert manifest.data.rows_holdout == pytest.approx(3000, abs=150)
    assert manifest.training["workers"] == 2
    assert manifest.training["rows_per_epoch"] % (SETTINGS.batch_size // 2) == 0
    assert manifest.metrics["selection_loss"] < manifest.metrics["constant_loss"] - 0.02
    assert {path.name for path in fitted.run.iterdir()} == {
        "fit.json",
        "learning.html",
        "learning.json",
        "model.pt",
        "reference.json",
        "run.json",
        "states.npz",
        "surface.yaml",
    }
    assert sum("loss:" in line for line in fitted.lines) == SETTINGS.epochs
    # The planted effect is large: seen without any assumption, and the run may be exported.
    assert manifest.verdict is not None
    assert manifest.verdict.level == "better"
    assert manifest.verdict.rows == manifest.data.rows_holdout
    assert manifest.verdict.slopes == pytest.approx([1.0, 1.0], abs=0.3)
    assert fitted.lines[-1].startswith("verdict    better than production and than the best static vector")


@pytest.mark.timeout(600)
def test_neither_a_killed_worker_nor_a_killed_driver_costs_anything(fitted: Fitted, tmp_path: Path) -> None:
    import ray

    out = tmp_path / "run"
    command = [sys.executable, "-m", "ray_train", "fit", str(fitted.logs), "--out", str(out)]
    command += [*cli_options(tmp_path), "--ray-address", ray.get_runtime_context().gcs_address]
    with (tmp_path / "driver.log").open("wb") as log:
        driver = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)

    def epochs_or_end(wanted: int) -> bool:
        return driver.poll() is not None or len(told(str(out / CHECKPOINTS))) >= wanted

    def require_running() -> None:
        assert driver.poll() is None, (tmp_path / "driver.log").read_text()

    try:
        wait_for(lambda: epochs_or_end(2), "two epochs")
        require_running()
        first = train_workers()
        first[-1].kill()
        wait_for(lambda: epochs_or_end(5), "epochs after the worker was killed")
        require_running()
        second = train_workers()
        assert not {process.pid for process in first} & {process.pid for process in second}
    finally:
        driver.kill()
        driver.wait()
    assert not (out / "run.json").exists()
    with pytest.raises(RunError, match="interrupted fit; go on with --resume"):
        fit_small(fitted.logs, out)
    with pytest.raises(RunError, match=r"cannot resume small-.*: epochs \(8 then, 9 now\)"):
        fit_small(fitted.logs, out, resume=True, settings=SETTINGS.model_copy(update={"epochs": 9}))
    wait_for(lambda: not train_workers(), "the workers of the killed driver to end")
    lines: list[str] = []
    fit_small(fitted.logs, out, lines.append, resume=True)
    assert any(line.startswith("resuming   after epoch") for line in lines)
    # From each checkpoint on, the same rows in the same order: bit for bit the undisturbed run.
    assert_same_run(out, fitted.run)


def cli_options(folder: Path) -> list[str]:
    """:data:`SETTINGS` and :data:`NETWORK` as a person would say them."""
    surface, network = folder / "surface.yaml", folder / "network.yaml"
    surface.write_text(SURFACE.to_yaml())
    network.write_text("\n".join(f"{name}: {value}" for name, value in NETWORK.model_dump().items()))
    return [
        *("--surface", str(surface), "--network", str(network), "--now", NOW.isoformat()),
        *("--workers", "2", "--epochs", "8", "--seed", "3", "--batch-size", "128", "--learning-rate", "5e-3"),
    ]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_fit_says_so_and_leaves_no_run(
    logs: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    import ray

    command = [sys.executable, "-m", "ray_train", "fit", str(logs), "--out", str(tmp_path / "run")]
    command += [*cli_options(tmp_path), "--ray-address", ray.get_runtime_context().gcs_address]
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert driver.stdout is not None
        assert any(line.startswith("workers") for line in driver.stdout)  # Ray is up, training starts
        driver.send_signal(number)
        _, errors = driver.communicate(timeout=60)
    finally:
        driver.kill()
        driver.wait()
    assert driver.returncode == code, errors
    assert "Traceback" not in errors
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_cluster_that_is_too_small_is_one_line(logs: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="need 5 CPUs, the Ray cluster has 4; use fewer workers"):
        fit_small(logs, tmp_path / "run", settings=FitSettings(workers=4))
    with pytest.raises(ConfigurationError, match="need 1 GPUs, the Ray cluster has 0"):
        fit_small(logs, tmp_path / "run", settings=FitSettings(gpu=True))
    assert not (tmp_path / "run").exists()


def test_a_log_that_cannot_be_used_leaves_nothing(tmp_path: Path) -> None:
    table = make_log(SURFACE, 300)
    bad = table.set_column(
        table.column_names.index("propensity"), "propensity", [np.where(np.arange(300) < 30, 2.0, 1 / 9)]
    )
    with pytest.raises(LogError, match="30 of 300 rows are bad"):
        fit_small(write_log(bad, tmp_path / "bad"), tmp_path / "run")
    with pytest.raises(LogError, match="only 1 good rows in the training window"):
        fit_small(write_log(table.slice(0, 4), tmp_path / "short"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
