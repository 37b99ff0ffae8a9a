"""The door ``python -m ray_train validate``: exit codes, one line, nothing half-written."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ray_train.cli import main
from ray_train.drift_scan import REFERENCE, write_reference
from ray_train.logs import discover_files
from ray_train.reading import list_units
from tests.support.logs import START, make_log, replace_cell, write_log
from tests.support.runs import write_untrained_run
from tests.support.surfaces import small_surface, small_surface_data
from triton_models.surface import Surface

SURFACE = small_surface()


def validate(logs: Path, *arguments: str, surface: Surface = SURFACE) -> int:
    file = logs.parent / "surface.yaml"
    file.write_text(surface.to_yaml())
    return main(["validate", str(logs), "--surface", str(file), *arguments])


def column(table: pa.Table, name: str, values: Any) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, pa.array(values))


def test_a_good_log_as_a_process(tmp_path: Path) -> None:
    write_log(make_log(SURFACE, 500), tmp_path / "logs")
    (tmp_path / "surface.yaml").write_text(SURFACE.to_yaml())
    command = [sys.executable, "-m", "ray_train", "validate", "logs", "--surface", "surface.yaml"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "500 rows, 500 good" in ended.stdout
    assert ended.stderr == ""


def one_cell(name: str, value: Any) -> Callable[[pa.Table], pa.Table]:
    return lambda table: replace_cell(table, name, 100, value)


def one_instant(value: int) -> Callable[[pa.Table], pa.Table]:
    """One timestamp as the bare number that the file holds: ``datetime`` knows no such instant."""

    def spoil(table: pa.Table) -> pa.Table:
        kind = table.schema.field("timestamp").type
        numbers = np.array(table["timestamp"].cast(pa.int64()))
        numbers[100] = value
        return column(table, "timestamp", pa.array(numbers).cast(kind))

    return spoil


NANOSECONDS = int(START.timestamp()) * 10**9

BAD: list[tuple[str, Callable[[pa.Table], pa.Table]]] = [
    ("off_grid_weights", one_cell("weight_p2p", 2.0)),
    ("bad_propensity", one_cell("propensity", None)),
    ("bad_propensity", one_cell("propensity", 1.5)),
    ("not_finite", one_cell("user_embedding", [0.0, float("nan"), 0.0, 0.0])),
    ("ragged_history", one_cell("history_age_s", [1.0] * 40)),
    ("bad_count", one_cell("reward_repin", -1)),
    ("duplicate_id", one_cell("request_id", "r0-499")),
    ("future_timestamp", one_cell("timestamp", START + timedelta(days=99_999))),
    ("future_timestamp", one_instant(NANOSECONDS)),
    ("impossible_timestamp", one_instant(-NANOSECONDS)),
    ("missing_field", one_cell("user_id", None)),
]


@pytest.mark.parametrize(("reason", "spoil"), BAD)
def test_each_kind_of_bad_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], reason: str, spoil: Callable[[pa.Table], pa.Table]
) -> None:
    logs = write_log(spoil(make_log(SURFACE, 500)), tmp_path / "logs")
    quarantine = tmp_path / "quarantine"
    assert validate(logs, "--quarantine", str(quarantine)) == 0
    assert reason in capsys.readouterr().out
    assert (quarantine / "summary.json").exists()
    assert validate(logs, "--max-bad-share", "0") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"1 of 500 rows are bad (0.20 %, at most 0 % accepted): {reason} 1; first: " in error


def empty_folder(logs: Path) -> None:
    for path in logs.iterdir():
        path.unlink()


def cut_short(logs: Path) -> None:
    path = logs / "part-001.parquet"
    path.write_bytes(path.read_bytes()[:-100])


def damaged_inside(logs: Path) -> None:
    path = logs / "part-001.parquet"
    content = bytearray(path.read_bytes())
    content[200:2000] = bytes(1800)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (empty_folder, "holds no *.parquet file"),
        (cut_short, "part-001.parquet: cannot be read as Parquet"),
        (damaged_inside, "part-001.parquet: cannot be read as Parquet"),
    ],
)
def test_damaged_logs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], None], message: str
) -> None:
    logs = write_log(make_log(SURFACE, 500), tmp_path / "logs")
    damage(logs)
    assert validate(logs, "--quarantine", str(tmp_path / "quarantine")) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["logs", "surface.yaml"]


def test_a_surface_that_does_not_fit_the_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = small_surface_data()
    data["controlled"][1]["head"] = "share"
    data["state"]["user_embedding"] = 5
    logs = write_log(make_log(SURFACE, 50), tmp_path / "logs")
    assert validate(logs, surface=Surface.from_dict(data)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "missing weight_share; user_embedding is fixed_size_list" in error
    assert "the surface does not know weight_p2p" in error


def test_action_frequencies_that_contradict_the_propensities(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = make_log(SURFACE, 5000)
    favoured = np.where(np.arange(5000) < 400, 105.0, np.array(table["weight_repin"]))
    logs = write_log(column(table, "weight_repin", favoured), tmp_path / "logs")
    assert validate(logs) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "warning: sample ratio: action frequencies contradict the logged propensities" in shown
    assert "(repin 105," in shown


def test_options_that_make_no_sense(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logs = write_log(make_log(SURFACE, 50), tmp_path / "logs")
    assert validate(logs, "--max-bad-share", "2") == 2
    assert validate(logs, "--now", "soon") == 2
    assert main(["validate", str(logs), "--surface", str(tmp_path / "none.yaml")]) == 2
    assert capsys.readouterr().err.count("\n") == 3


def test_drift_since_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # The run was trained on the first 14 of 21 days.
    table = make_log(SURFACE, 12_000)
    run = write_untrained_run(SURFACE, tmp_path / "run")
    assert validate(write_log(table, tmp_path / "same" / "logs"), "--run", str(run)) == 0
    told = capsys.readouterr().out
    assert "warning: drift" not in told
    assert "drift since run untrained-small-0: " in told
    # Afterwards another ranker: the reward follows one weight, whoever asks.
    later = np.array(table["timestamp"].cast(pa.int64())) > (START + timedelta(days=14)).timestamp() * 1e6
    follows = (np.array(table["weight_repin"]) > 150).astype(np.int32)
    reward = np.where(later, follows, np.array(table["reward_repin"])).astype(np.int32)
    changed = write_log(column(table, "reward_repin", reward), tmp_path / "other" / "logs")
    assert validate(changed, "--run", str(run)) == 0
    told = capsys.readouterr().out
    assert "warning: drift since run untrained-small-0: the rewards answer to the weights otherwise" in told
    assert "use static weights" in told


def test_drift_since_a_run_whose_logs_are_gone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_untrained_run(SURFACE, tmp_path / "run")
    table, changes = make_log(SURFACE, 12_000), START + timedelta(days=14)
    early, later = (table.filter(part) for part in in_two(table, changes))
    logs = write_log(early, tmp_path / "early" / "logs")
    files = discover_files(logs)
    write_reference(run, SURFACE, files, list_units(SURFACE, files), (START, changes), datetime.now(UTC))
    shutil.rmtree(logs)
    assert validate(write_log(later, tmp_path / "same" / "logs"), "--run", str(run)) == 0
    assert "warning: drift" not in capsys.readouterr().out
    reward = (np.array(later["weight_repin"]) > 150).astype(np.int32)
    changed = write_log(column(later, "reward_repin", reward), tmp_path / "other" / "logs")
    assert validate(changed, "--run", str(run)) == 0
    assert "the rewards answer to the weights otherwise" in capsys.readouterr().out
    (run / REFERENCE).write_text('{"contrast_degree": 2, "days": {"rows_D": [1]}}')
    assert validate(changed, "--run", str(run)) == 2
    assert "reference.json: cannot be read (expected contrast_DBM" in capsys.readouterr().err


def in_two(table: pa.Table, moment: datetime) -> tuple[pa.Array, pa.Array]:
    """Before a moment, and from then on."""
    first = np.array(table["timestamp"].cast(pa.int64())) < moment.timestamp() * 1e6
    return pa.array(first), pa.array(~first)


def test_drift_needs_rows_of_both_windows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_untrained_run(SURFACE, tmp_path / "run")
    early = make_log(SURFACE, 600, days=10)
    assert validate(write_log(early, tmp_path / "logs"), "--run", str(run)) == 2
    assert "drift cannot be judged, there are no rows later than it" in capsys.readouterr().err
