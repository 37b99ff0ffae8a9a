"""A log written by another program: plain pyarrow, other sizes and names, no optional column."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ray_train.cli import main
from ray_train.fit import fit
from ray_train.settings import FitSettings
from tests.support.foreign import SURFACE, write_foreign_log
from triton_models.network_config import NetworkConfig
from triton_models.runs import load_run
from triton_models.surface import load_surface


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
    assert loaded.load_network().head.heads.weight.shape == (3, 128 // 8)


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
