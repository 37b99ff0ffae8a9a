from __future__ import annotations

import argparse
import html.parser
import io
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError

from ray_train.commands import fit as fit_command
from ray_train.epochs import Progress, serialize
from ray_train.fit import _say_plan, _set_aside, _write_run, fit
from ray_train.fit_plan import Plan, make_plan
from ray_train.fit_request import FitRequest
from ray_train.learners import COMMITTEE, DEFAULT_LEARNER
from ray_train.learning_curve import learning_html
from ray_train.objective import learning_rate_factor, row_losses
from ray_train.planning import in_threads
from ray_train.settings import FitSettings
from ray_train.telling import epoch_line, following_epochs, tell, told
from tests.support.logs import START, make_log, replace_cell, write_log
from tests.support.surfaces import small_surface
from triton_models.errors import ConfigurationError, RunError
from triton_models.network_config import NetworkConfig
from triton_models.runs import Estimate, RunVerdict, load_run

HISTORY = [
    {
        "epoch": 1,
        "train_loss": 0.5,
        "selection_loss": 0.48,
        "holdout_loss": 0.49,
        "rows": 100,
        "seconds": 0.1,
    },
    {
        "epoch": 2,
        "train_loss": 0.4,
        "selection_loss": 0.45,
        "holdout_loss": 0.46,
        "rows": 100,
        "seconds": 0.1,
    },
    {
        "epoch": 3,
        "train_loss": 0.3,
        "selection_loss": 0.47,
        "holdout_loss": math.nan,
        "rows": 9,
        "seconds": 1.0,
    },
]


def test_squared_error_is_equation_8() -> None:
    # Q = (0.5, 0.5), r = (1, 0): 0.25 + 0.25.
    loss = row_losses(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]), "mse")
    assert loss.tolist() == [0.5]


def test_cross_entropy_is_summed_over_objectives() -> None:
    loss = row_losses(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]), "bce")
    assert loss.tolist() == pytest.approx([2 * math.log(2)])


def test_the_learning_rate_rises_then_falls_to_zero() -> None:
    factors = [learning_rate_factor(step, 100, 0.1) for step in range(101)]
    assert factors[:10] == sorted(factors[:10])
    assert factors[10] == 1.0
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[100] == pytest.approx(0.0, abs=1e-9)
    assert learning_rate_factor(500, 100, 0.1) == pytest.approx(0.0, abs=1e-9)
    assert all(factor > 0 for factor in factors[:100])


def test_the_page_is_self_contained_and_names_the_best_epoch() -> None:
    page = learning_html("run <1>", HISTORY, best_epoch=2, constant_loss=0.5)
    parser = html.parser.HTMLParser()
    parser.feed(page)
    assert "run &lt;1&gt;" in page
    assert page.count("<polyline") == 3
    assert "<script" not in page
    assert "http" not in page
    assert "Kept: epoch 2" in page
    assert "nan" not in page.lower()


def test_a_page_of_one_epoch() -> None:
    assert "<svg" in learning_html("x", HISTORY[:1], best_epoch=1, constant_loss=math.nan)


def test_epochs_are_told_and_followed(tmp_path: Path) -> None:
    storage = str(tmp_path / "checkpoints")
    assert told(storage) == []
    lines: list[str] = []
    with following_epochs(storage, 3, lines.append):
        tell(storage, HISTORY[:1])
        tell(storage, HISTORY[:2])
    assert [line[:11] for line in lines] == ["epoch   1/3", "epoch   2/3"]
    assert "(best)" in lines[1]
    with following_epochs(f"file://{storage}", 3, lines.append):
        tell(f"file://{storage}", HISTORY)
    assert lines[2] == "resuming   after epoch 2 of 3"
    assert lines[3] == epoch_line(HISTORY, 2, 3)
    assert "(best)" not in lines[3]
    assert "9 rows/s" in lines[3]


def test_a_long_epoch_is_heard_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray_train.telling.LINE_INTERVAL_S", 0.0)
    lines: list[str] = []
    with following_epochs(str(tmp_path), 3, lines.append):
        tell(str(tmp_path), HISTORY[:1], step=40, steps=90)
    assert lines[-1] == "epoch   2/3  step 40 of 90"


@pytest.mark.parametrize(
    "change", [{"epochs": 0}, {"workers": 0}, {"learning_rate": math.nan}, {"loss": "hinge"}, {"unknown": 1}]
)
def test_impossible_settings_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        FitSettings.model_validate(change)


def test_the_number_of_workers_may_change_on_resume_but_not_what_is_learned() -> None:
    one, two = FitSettings(), FitSettings(workers=4, gpu=True)
    assert one.differences(two) == {}
    assert one.differences(FitSettings(epochs=9)) == {"epochs": (one.epochs, 9)}


def options(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    fit_command.add_parser(parser.add_subparsers())
    return parser.parse_args(["fit", "LOGS", "--surface", "S", "--out", "RUN", *arguments])


def test_every_size_of_the_network_is_an_option() -> None:
    assert set(fit_command.NETWORK_OPTIONS) == set(NetworkConfig.model_fields)


def test_options_become_settings() -> None:
    given = options(
        "--epochs", "3", "--workers", "2", "--cpus-per-worker", "1", "--loss", "bce", "--max-rows", "9"
    )
    assert fit_command.fit_settings(given) == COMMITTEE.fit_settings(
        epochs=3, workers=2, loss="bce", max_rows=9
    )


def test_a_learner_brings_its_own_settings() -> None:
    settings = fit_command.fit_settings(options("--learner", "paper", "--cpus-per-worker", "1"))
    assert (settings.learner, settings.loss, settings.epochs) == ("paper", "mse", 8)
    assert FitSettings().differences(settings)["learner"] == ("committee", "paper")


def test_the_default_is_the_same_at_the_door_and_in_python() -> None:
    default = fit_command.fit_settings(options("--cpus-per-worker", "1"))
    assert default == FitSettings() == COMMITTEE.fit_settings()
    assert DEFAULT_LEARNER == "committee"


def test_impossible_options_are_one_line() -> None:
    with pytest.raises(ConfigurationError, match=r"settings: batch_size: .* \(got 1\)"):
        fit_command.fit_settings(options("--batch-size", "1"))


@pytest.mark.parametrize(
    ("files", "resume", "message"),
    [
        (["run.json"], False, "holds a finished run; name another --out"),
        (["run.json"], True, "holds a finished run; name another --out"),
        (["fit.json"], False, "holds an interrupted fit; go on with --resume or name another --out"),
        (["notes.txt"], False, "holds other files; name another --out"),
        (["fit.json"], True, "is damaged; name another --out"),
        ([], True, "holds no interrupted fit to resume; leave out --resume"),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused_at_once(
    tmp_path: Path, files: list[str], resume: bool, message: str
) -> None:
    for name in files:
        (tmp_path / name).write_text("{}")
    with pytest.raises(RunError, match=message):
        fit(surface=small_surface(), logs="LOGS", out=tmp_path, settings=FitSettings(), resume=resume)


def test_a_fit_begun_before_counts_were_learned_from_does_not_go_on_with_them() -> None:
    settings = FitSettings()
    old = FitRequest(
        run_id="r",
        logs="LOGS",
        surface_fingerprint="f",
        settings=settings,
        network=NetworkConfig(),
        windows=("a", "b", "c"),
        rows=(1, 1),
    ).model_dump(mode="json")
    assert FitRequest.model_validate(old).settings == settings
    del old["settings"]["count_weight"]
    was = FitRequest.model_validate(old).settings
    assert was.differences(settings) == {"count_weight": (0.0, settings.count_weight)}


def test_a_folder_that_cannot_be_made_is_refused_before_ray_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_cluster(settings: FitSettings, address: str | None) -> None:
        raise ConnectionError("Ray was started")

    monkeypatch.setattr("ray_train.cluster.joined_ray", no_cluster)
    file = tmp_path / "file"
    file.write_text("")
    for out, message in (
        (file, "is a file; name another --out"),
        (file / "run", r"cannot be written \(Not a directory\); name another --out"),
        (tmp_path / ("x" * 300), r"cannot be written \(File name too long\); name another --out"),
    ):
        with pytest.raises(RunError, match=message):
            fit(surface=small_surface(), logs="LOGS", out=out, settings=FitSettings())
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_fit_that_did_not_begin_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def no_cluster(address: str | None, *, cpus: int) -> Iterator[bool]:
        raise ConfigurationError("no cluster")
        yield

    monkeypatch.setattr("ray_train.cluster.joined_ray", no_cluster)
    with pytest.raises(ConfigurationError, match="no cluster"):
        fit(surface=small_surface(), logs="LOGS", out=tmp_path / "runs" / "run", settings=FitSettings())
    assert list(tmp_path.iterdir()) == []


def planned(tmp_path: Path, change: Callable[[pa.Table], pa.Table]) -> Plan:
    logs = write_log(change(make_log(small_surface(), 3000)), tmp_path / "logs")
    now = START + timedelta(days=30)
    return make_plan(small_surface(), logs, FitSettings(), now=now, mapper=in_threads)


def test_bad_rows_are_set_aside_and_a_suspicious_log_is_spoken_of(tmp_path: Path) -> None:
    def favour(table: pa.Table) -> pa.Table:
        weights = np.array(table["weight_repin"])
        weights[:400] = 105.0
        index = table.column_names.index("weight_repin")
        table = table.set_column(index, "weight_repin", pa.array(weights))
        return replace_cell(table, "propensity", 1000, 2.0)

    plan, lines, folder = planned(tmp_path, favour), list[str](), tmp_path / "quarantine"
    _say_plan(lines.append, small_surface(), plan)
    _set_aside(lines.append, small_surface(), plan, folder)
    assert "left out   1 bad rows: bad_propensity 1" in lines
    assert any(line.startswith("warning: sample ratio: action frequencies contradict") for line in lines)
    assert lines[-1] == f"           set aside with their reasons in {folder}"
    assert pq.read_table(folder / "part-00000.parquet")["request_id"].to_pylist() == ["r0-1000"]
    _set_aside(lines.append, small_surface(), plan, folder)  # as a resumed fit does
    assert lines[-1] == lines[-2]


def test_nothing_is_said_of_a_good_log(tmp_path: Path) -> None:
    plan, lines = planned(tmp_path, lambda table: table), list[str]()
    _say_plan(lines.append, small_surface(), plan)
    _set_aside(lines.append, small_surface(), plan, tmp_path / "quarantine")
    assert [line[:8] for line in lines] == ["training", "        ", "hold-out"]
    assert not (tmp_path / "quarantine").exists()


NOTHING = Estimate(estimate=0.0, low=-0.1, high=0.1)
VERDICT = RunVerdict(
    level="not yet",
    text="not yet",
    versus_static=NOTHING,
    versus_production=NOTHING,
    calibrated=NOTHING,
    slopes=(0.0, 0.0),
    slope_errors=(1.0, 1.0),
    scalarizations=((0.5, 0.5),),
    static_weights=((1.0, 1.0),),
    same_as_static=0.5,
    rows=1000,
    more_rows=5000,
)


def test_losses_that_are_not_finite_do_not_cost_the_run(tmp_path: Path) -> None:
    surface, plan = small_surface(), planned(tmp_path, lambda table: table)
    network = NetworkConfig()
    request = FitRequest(
        run_id="r",
        logs="LOGS",
        surface_fingerprint=surface.fingerprint,
        settings=FitSettings(),
        network=network,
        windows=("a", "b", "c"),
        rows=(2000, 1000),
    )
    history = [{**HISTORY[0], "holdout_loss": math.nan}, {**HISTORY[1], "holdout_loss": math.inf}]
    progress = Progress(epoch=2, history=history, best_epoch=2, best={"w": torch.zeros(1)})
    folder = tmp_path / "run"
    folder.mkdir()
    _write_run(folder, surface, plan, request, progress, b"", VERDICT, 1.0)
    learning = json.loads((folder / "learning.json").read_text())
    assert [record["holdout_loss"] for record in learning["epochs"]] == [None, None]
    assert learning["constant_loss"] is None
    run = load_run(folder)
    assert run.manifest.verdict == VERDICT
    with pytest.raises(RunError, match="not yet; not exported; --force exports it all the same"):
        run.require_passed()
    metrics = run.manifest.metrics
    assert sorted(metrics) == ["rows_per_s", "selection_loss", "train_loss"]


def test_the_best_epoch_is_kept_and_a_diverged_one_is_no_model() -> None:
    progress = Progress()
    for epoch, loss in enumerate([0.5, 0.4, 0.45], start=1):
        progress.keep({"train_loss": 1.0, "selection_loss": loss}, {"w": torch.tensor([float(epoch)])})
    progress.require_converged()
    assert (progress.epoch, progress.best_epoch, progress.best["w"].item()) == (3, 2, 2.0)
    again = torch.load(io.BytesIO(serialize(progress.__dict__)), weights_only=True)
    assert Progress(**again).history == progress.history
    progress.keep({"train_loss": math.nan, "selection_loss": math.nan}, {"w": torch.tensor([0.0])})
    with pytest.raises(RunError, match="training diverged in epoch 4"):
        progress.require_converged()
