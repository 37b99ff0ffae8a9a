"""``python -m serve up`` refuses what cannot work in one line, before it starts anything."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest

from serve.cli import main
from serve.config import SidecarConfig
from serve.settings import settings_of
from tests.support.frontiers import frontier_data
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


@pytest.mark.parametrize(
    "line",
    [
        "value_network: localhost:8001",
        "value_network: false",
        "ranker: localhost:8001",
        "ranker: 7",
        "http: 8000",
    ],
)
def test_a_section_of_the_file_is_a_mapping(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("S").write_text(SURFACE.to_yaml())
    Path("c.yaml").write_text(line + "\n")
    assert main(["up", "--config", "c.yaml", "--triton", "127.0.0.1:1", "--surface", "S"]) == 2
    error = capsys.readouterr().err
    assert f"c.yaml: {line.split(':')[0]}: expected a mapping" in error
    assert len(error.strip().splitlines()) == 1


def test_a_frontier_says_which_run_is_expected(tmp_path: Path) -> None:
    data = frontier_data(SURFACE)
    data["run"]["run_id"] = "run-a"
    (tmp_path / "frontier.json").write_text(json.dumps(data))
    names = "config repository ranker ranker_repository budget_ms surface scalarization operating_point "
    names += "policy_store operator_tokens viewer_tokens allow_local_changes decision_log"
    options = argparse.Namespace(**dict.fromkeys([*names.split(), "no_control", "host", "port", "replicas"]))
    options.triton, options.frontier = "127.0.0.1:1", tmp_path
    config = SidecarConfig.from_dict(settings_of(options))
    assert config.expected_run_id == "run-a"
    assert SidecarConfig.from_dict(config.to_dict()) == config


def _settings(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> SidecarConfig:
    found: list[SidecarConfig] = []

    def settle(options: argparse.Namespace) -> int:
        found.append(SidecarConfig.from_dict(settings_of(options)))
        return 0

    monkeypatch.setattr("serve.up.run_up", settle)
    assert main(["up", "--triton", "127.0.0.1:1", "--surface", "S", *arguments]) == 0
    return found[0]


def test_where_decisions_are_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("S").write_text(SURFACE.to_yaml())
    assert _settings(monkeypatch).decision_log is None
    log = _settings(monkeypatch, "--decision-log", "D").decision_log
    assert log is not None
    assert (log.folder, log.spool_folder) == (str(tmp_path / "D"), tmp_path / "D" / "_spool")
    Path("etc").mkdir()
    Path("etc/c.yaml").write_text("decision_log: {folder: D, spool: s, sample_rate: 0.5}\n")
    log = _settings(monkeypatch, "--config", "etc/c.yaml", "--decision-log", "s3://bucket/D").decision_log
    assert log is not None
    assert (log.folder, log.spool, log.sample_rate) == ("s3://bucket/D", str(tmp_path / "etc" / "s"), 0.5)
    Path("etc/c.yaml").write_text("decision_log: {folder: D, user_ids: hashed}\n")
    assert main(["up", "--triton", "127.0.0.1:1", "--surface", "S", "--config", "etc/c.yaml"]) == 2
    assert main(["up", "--triton", "127.0.0.1:1", "--surface", "S", "--decision-log", "s3://b/D"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert "PUTS_USER_SALT, got 0 bytes" in errors[0]
    assert "say where the local spool is" in errors[1]


def test_the_room_needs_no_torch_and_the_door_no_ray() -> None:
    code = "import sys, serve.api, serve.settings, serve.up;"
    code += "print([m for m in ('torch', 'ray') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
