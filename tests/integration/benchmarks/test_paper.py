"""``paper`` from door to page in tiny worlds: real feed, fit, sweep and A/B tests. No figure is claimed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.cli import main
from triton_models.frontier import load_frontier

TINY = {
    "requests": 9000,
    "test-requests": 2048,
    "points": 9,
    "ablation-requests": 2000,
    "ablation-seeds": 1,
    "truth-requests": 50,
    "candidates": 60,
}


def run(out: Path, **changes: int) -> int:
    options = TINY | {name.replace("_", "-"): value for name, value in changes.items()}
    flat = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    return main(["paper", "--out", str(out), "--seed", "31", "32", *flat])


def test_two_tiny_worlds_from_log_to_page(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path) == 0
    said = capfd.readouterr().out
    assert "points-32: done" in said and "ablation-31-context: done" in said

    part = json.loads((tmp_path / "parts" / "points-31.json").read_text())
    everybody = part["groups"]["everybody"]
    repin, p2p = zip(*(lifts[:2] for lifts in everybody["truth"]["lift"]), strict=True)
    assert repin[0] > repin[-1] and p2p[0] < p2p[-1]  # α trades one for the other
    assert sum(part["chosen"][0]) == TINY["test-requests"]
    assert sum(part["groups"][name]["share"] for name in ("core", "casual", "rest")) == pytest.approx(1.0)
    assert len(load_frontier(tmp_path / "frontiers" / "frontier-31.json").points_of("core")) == TINY["points"]

    data = json.loads((tmp_path / "paper.json").read_text())
    assert len(data["findings"]) == 10 and len(data["correlation"]["sweep / online / p2p"]["worlds"]) == 2
    assert (tmp_path / "paper.html").read_text().count("<svg") == 15

    # What lies there is not run again; other settings are refused, before anything is run.
    assert run(tmp_path) == 0
    again = capfd.readouterr().out
    assert "points-31: there already" in again and "done" not in again
    assert run(tmp_path, test_requests=1024) == 2
    error = capfd.readouterr().err
    assert "another test_requests" in error and error.count("\n") == 1
    assert run(tmp_path, users=1500) == 2
    assert "another users" in capfd.readouterr().err
