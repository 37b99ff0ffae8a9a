"""A log in which nobody wants anything else than the others: ``fit`` says so, and ``export`` refuses."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from ray_train.fit import fit
from ray_train.learners import COMMITTEE
from tests.support.logs import START, make_log, write_log
from tests.support.surfaces import small_surface
from triton_models.cli import main as triton_models
from triton_models.runs import load_run

SURFACE = small_surface()
NETWORK = COMMITTEE.network.model_copy(update={"members": 4, "backbone_width": 32, "state_width": 16})


@pytest.mark.usefixtures("ray_cluster")
def test_without_a_gain_nothing_is_exported_unless_forced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Rewards are coin tosses: every action is worth the same to everybody, whatever the network makes of it.
    logs = write_log(make_log(SURFACE, 9000, effect=0.0, seed=4), tmp_path / "logs")
    lines: list[str] = []
    run = fit(
        surface=SURFACE,
        logs=logs,
        out=tmp_path / "run",
        settings=COMMITTEE.fit_settings(epochs=4, batch_size=256, seed=1),
        network=NETWORK,
        now=START + timedelta(days=30),
        say=lines.append,
    )
    verdict = load_run(run).manifest.verdict
    assert verdict is not None
    assert verdict.level != "better"
    assert lines[-1] == f"verdict    {verdict.text}"

    repository = tmp_path / "repository"
    export = ["export", str(run), "--repository", str(repository), "--backend", "python"]
    assert triton_models(export) != 0
    assert f"{verdict.text}; not exported; --force exports it all the same" in capsys.readouterr().err
    assert not repository.exists()
    assert triton_models([*export, "--force"]) == 0
    assert (repository / "value_network" / "1").is_dir()
