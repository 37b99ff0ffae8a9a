"""A log written by another program: plain pyarrow, other sizes and names, no optional column."""

from __future__ import annotations

import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_train.cli import main
from ray_train.fit import fit
from ray_train.settings import FitSettings
from triton_models.network import NetworkConfig
from triton_models.runs import load_run
from triton_models.surface import load_surface

SURFACE = """
name: videos
objectives: [watch, share, follow]
controlled:
  - {head: watch, minimum: 0, maximum: 1, points: 3, production: 0.4}
  - {head: share, minimum: 5, maximum: 20, points: 2, production: 6}
  - {head: follow, minimum: -1, maximum: 1, points: 3, production: 0}
fixed: {}
state:
  user_embedding: 6
  history: {length: 3, embedding: 2, actions: [view]}
  context: {}
metrics: [complaints]
"""


def write_foreign_log(folder: Path, rows: int = 5000) -> None:
    """Nothing of ours is used here; timestamps have no zone and seconds only, ids are integers."""
    rng = np.random.default_rng(7)
    start = datetime(2025, 3, 1)
    for day in range(4):
        part = folder / f"dt=2025-03-0{day + 1}"
        part.mkdir(parents=True)
        n = rows // 4
        lengths = rng.integers(0, 6, n)
        columns = {
            "request_id": pa.array(np.arange(n) + day * n, pa.int64()),
            "timestamp": pa.array(
                [start + timedelta(days=day, seconds=int(s)) for s in sorted(rng.integers(0, 86_400, n))],
                pa.timestamp("s"),
            ),
            "user_id": pa.array([f"user-{i}" for i in rng.integers(0, 99, n)]).dictionary_encode(),
            "user_embedding": pa.array(rng.normal(size=(n, 6)).tolist(), pa.list_(pa.float64())),
            "history_embedding": pa.array(
                [rng.normal(size=(k, 2)).tolist() for k in lengths], pa.large_list(pa.list_(pa.float64()))
            ),
            "history_action": pa.array([["view"] * k for k in lengths], pa.list_(pa.large_string())),
            "history_age_s": pa.array([list(range(k)) for k in lengths], pa.list_(pa.int64())),
            "weight_watch": pa.array(rng.choice([0, 0.5, 1], n), pa.float32()),
            "weight_share": pa.array(rng.choice([5, 20], n), pa.int16()),
            "weight_follow": pa.array(rng.choice([-1.0, 0, 1], n)),
            "propensity": pa.array(np.full(n, 1 / 18)),
            "reward_watch": pa.array(rng.integers(0, 3, n), pa.int8()),
            "reward_share": pa.array(rng.random(n) < 0.2),
            "reward_follow": pa.array(rng.integers(0, 2, n), pa.uint32()),
            "experiment_name": pa.array(["x"] * n),
        }
        pq.write_table(pa.table(columns), part / "000.parquet", compression="zstd", version="1.0")


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("foreign")
    write_foreign_log(folder / "logs")
    (folder / "surface.yaml").write_text(SURFACE)
    return folder


def test_validate(foreign: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["validate", str(foreign / "logs"), "--surface", str(foreign / "surface.yaml")])
    shown = capsys.readouterr()
    assert code == 0, shown.err
    assert "5,000 rows, 5,000 good" in shown.out
    assert "not logged" in shown.out
    assert "actions occur as often" in shown.out


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\..*")
def test_fit_streaming_with_two_workers(foreign: Path, tmp_path: Path) -> None:
    # cache_mb=0: read again every epoch, in shards of unequal blocks.
    surface = load_surface(foreign / "surface.yaml")
    lines: list[str] = []
    run = fit(
        surface=surface,
        logs=foreign / "logs",
        out=tmp_path / "run",
        settings=FitSettings(workers=2, epochs=2, batch_size=100, cache_mb=0, loss="bce", amp=True),
        network=NetworkConfig(history_width=4, history_layers=0, backbone_width=16),
        say=lines.append,
    )
    assert any("read again every epoch" in line for line in lines)
    assert any("split by share" in line for line in lines)
    loaded = load_run(run)
    assert loaded.manifest.data.rows_train == pytest.approx(5000 * 2 / 3, abs=150)
    assert loaded.load_network().heads.weight.shape == (3, 128 // 8)


@pytest.mark.parametrize("command", [["--help"], ["validate", "--help"], ["fit", "--help"]])
def test_help_is_quick_and_needs_neither_ray_nor_torch(command: list[str]) -> None:
    code = (
        "import sys\nfrom ray_train.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as end:\n"
        "    loaded = {'ray', 'torch'} & set(sys.modules)\n"
        "    sys.exit(f'{loaded}' if loaded else end.code)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, *command], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert "usage" in ended.stdout
