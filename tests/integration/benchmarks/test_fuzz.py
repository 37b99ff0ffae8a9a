"""A short run of the fuzzer with a fixed seed; the long one (R5) is ``python -m benchmarks fuzz``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.cli import main
from serve.sidecar import Sidecar


def test_nothing_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "fuzz.json"
    assert main(["fuzz", "--cases", "800", "--seed", "4", "--out", str(out)]) == 0, capsys.readouterr()
    found = json.loads(out.read_text())
    assert found["cases"] >= 800
    assert found["num_findings"] == 0
    kinds = found["by_kind"]
    # Bad bodies got further than the parser, and good ones were served.
    assert {"200", "400", "413", "422"} <= set(kinds["POST /v1/rank"]) | set(kinds["raw: body"])
    for route in ("POST /v1/rank as tensors", "POST /v1/weights as tensors"):
        assert set(kinds[route]) <= {"200", "413", "422", "503"}, kinds[route]
        assert kinds[route]["200"] >= 5
    assert {"200", "400", "422"} <= set(kinds["raw: tensors"])
    # The value network behind it was as moody as it says it is.
    moods = {"late", "unavailable", "invalid_answer", "state_invalid", "state_incomplete"}
    assert moods <= {reason for reason, count in found["fallbacks"].items() if count}, found["fallbacks"]
    assert {"raw: headers", "raw: broken HTTP", "raw: method and path"} <= set(kinds)


def test_a_bug_is_found(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    honest = Sidecar.rank

    async def buggy(self: Sidecar, request: Any, *rest: Any, **named: Any) -> Any:
        if len(request.candidates) == 1:
            raise IndexError("off by one")
        return await honest(self, request, *rest, **named)

    monkeypatch.setattr(Sidecar, "rank", buggy)
    assert main(["fuzz", "--cases", "100"]) == 2
    told = capsys.readouterr()
    assert "FOUND POST /v1/rank" in told.out
    assert "findings in" in told.err
