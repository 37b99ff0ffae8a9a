"""``python -m serve up`` refuses what cannot work in one line, before it starts anything."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from serve.cli import main
from tests.unit.serve.support import SURFACE


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ([], "--triton"),
        (["--triton", "127.0.0.1:1"], "--surface"),
        (["--triton", "nowhere", "--surface", "S"], "addresses"),
        (["--triton", "127.0.0.1:1", "--surface", "missing.yaml"], "missing.yaml"),
        (["--triton", "127.0.0.1:1", "--surface", "S", "--scalarization", "a"], "--scalarization"),
        (["--triton", "127.0.0.1:1", "--surface", "S", "--scalarization", "0,0"], "scalarization"),
        (["--triton", "127.0.0.1:1", "--surface", "S", "--operating-point", "knee"], "--frontier"),
        (["--triton", "127.0.0.1:1", "--surface", "S", "--budget-ms", "0"], "budget_ms"),
        (["--triton", "127.0.0.1:1", "--frontier", "missing"], "no frontier"),
        (["--repository", "missing"], "missing"),
        (["--config", "missing.yaml"], "missing.yaml"),
    ],
)
def test_one_line_and_exit_code_2(
    arguments: list[str],
    word: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("S").write_text(SURFACE.to_yaml())
    assert main(["up", *arguments]) == 2
    error = capsys.readouterr().err
    assert word in error
    assert len(error.strip().splitlines()) == 1


def test_the_room_needs_no_torch_and_the_door_no_ray() -> None:
    code = "import sys, serve.api, serve.settings, serve.up;"
    code += "print([m for m in ('torch', 'ray') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
