"""``python -m benchmarks cost`` with a tiny run, the real ONNX Runtime and the real tritonserver."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.cli import main
from benchmarks.cost.through_triton import PARTS
from tests.support.runs import write_untrained_run
from triton_models.surface import Surface


@pytest.mark.timeout(180)
def test_the_whole_measurement(surface: Surface, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_untrained_run(surface, tmp_path / "run")
    out = tmp_path / "out"
    arguments = ["cost", str(run), "--out", str(out), "--batches", "1", "3", "--no-compile", "--no-gpu"]
    assert main([*arguments, "--blocks", "3", "--turn-ms", "4", "--load-s", "0.3"]) == 0
    said = capsys.readouterr().out
    assert "P4, batch 1: ours vs A: " in said and "P4, batch 1: ours vs B: " in said
    assert str(out / "cost.json") in said

    data = json.loads((out / "cost.json").read_text(encoding="utf-8"))
    assert {(item["contestant"], item["batch"]) for item in data["cpu"]} == {
        (key, batch) for key in ("A", "B", "ours", "eager") for batch in (1, 3)
    }
    assert all(found["difference"] <= 1e-5 for found in data["agreement"].values())
    slower = {item["contestant"]: item["times"]["median_s"] for item in data["cpu"] if item["batch"] == 3}
    assert slower["A"] > slower["ours"]

    shares = {item["batch"]: item for item in data["triton"]["shares"]}
    assert set(shares) == {1, 8, 64}
    for item in shares.values():
        assert set(item["parts_s"]) == set(PARTS)
        # Means of turns against a median of calls: near, on a machine that others use too.
        assert sum(item["parts_s"].values()) > 0.3 * item["median_s"]
        assert item["server_s"] < 2.0 * sum(item["parts_s"].values())
        assert item["parts_s"]["transport"] > 0
    load = {item["in_flight"]: item for item in data["triton"]["concurrency"]}
    assert load[1]["effective_batch"] == pytest.approx(1.0)
    assert load[16]["effective_batch"] > 1.0
    assert load[16]["choices_per_s"] > 0

    assert "## What a choice costs" in (out / "cost.md").read_text(encoding="utf-8")
    assert (out / "cost.html").read_text(encoding="utf-8").count("<svg") == 2
