"""``distil`` through its door, on real logs and the session's Ray cluster."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ray_train.cli import main
from tests.support.logs import make_log, write_log
from tests.support.runs import write_untrained_run
from tests.support.surfaces import small_surface
from triton_models.runs import load_run

pytestmark = pytest.mark.usefixtures("ray_cluster")
SMALL = ["--rows", "1500", "--epochs", "6", "--batch-size", "64", "--backbone-width", "32"]


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_log(make_log(small_surface(), 3000), tmp_path_factory.mktemp("logs"))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_untrained_run(small_surface(), tmp_path_factory.mktemp("teacher") / "run")


def test_a_student_is_a_run_of_its_own(
    logs: Path, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "student"
    arguments = ["distil", str(logs), "--run", str(teacher), "--out", str(out), *SMALL]
    assert main([*arguments, "--max-unexplained", "0.5"]) == 0
    said = capsys.readouterr().out
    assert "no interval excludes zero" in said and "epoch   6/6" in said
    run = load_run(out)
    assert run.manifest.training["distilled_from"] == load_run(teacher).manifest.run_id
    assert run.manifest.data == load_run(teacher).manifest.data
    assert run.load_network().config.action_head == "grid"
    told = json.loads((out / "distillation.json").read_text())
    assert len(told["points"]) == 11
    assert all(0.3 < point["same_action"] <= 1 for point in told["points"])
    assert 0 < run.manifest.metrics["unexplained_share"] < 0.5
    assert "<svg" in (out / "learning.html").read_text()
    # The door does not write over it.
    assert main(arguments) == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (["--max-unexplained", "0.0001"], "unexplained, allowed 0.01%; nothing was written"),
        (["--max-unexplained", "1.5"], "--max-unexplained must lie between 0 and 1"),
        (["--epochs", "0"], "epochs"),
        (["--gpu"], "this machine has no GPU"),
    ],
)
def test_refusals_are_one_line_and_leave_nothing(
    logs: Path,
    teacher: Path,
    tmp_path: Path,
    change: list[str],
    problem: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "student"
    assert main(["distil", str(logs), "--run", str(teacher), "--out", str(out), *SMALL, *change]) == 2
    error = capsys.readouterr().err
    assert problem in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_logs_of_another_time_are_refused(
    teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = write_log(make_log(small_surface(), 300, days=3), tmp_path / "logs")
    out = tmp_path / "student"
    assert main(["distil", str(short), "--run", str(teacher), "--out", str(out), *SMALL]) == 2
    assert "distillation needs the run's own logs" in capsys.readouterr().err
    assert not out.exists()
