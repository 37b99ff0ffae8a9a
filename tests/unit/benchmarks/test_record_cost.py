from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.cli import main


def test_the_cost_of_a_record_is_measured_and_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["record", "--blocks", "1", "--block-s", "0.2", "--rate", "200", "--out", str(tmp_path)]
    assert main(arguments) == 0
    result = json.loads((tmp_path / "record.json").read_text())
    assert 0 < result["record_us"]["p50"] <= result["record_us"]["p99"]
    assert result["empty_call_us"]["p50"] < result["record_us"]["p50"]
    assert result["log"]["written"] > 5
    assert (tmp_path / "record.md").read_text() in capsys.readouterr().out
    assert main([*arguments, "--rate", "0"]) == 2
