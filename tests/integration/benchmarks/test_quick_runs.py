"""``latency`` and ``chaos`` from door to page: real gRPC servers, the real sidecar, Locust. No figures."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.cli import main


def test_latency_finds_a_delay_that_was_really_put_in(tmp_path: Path) -> None:
    # 60 ms stand out of any machine's noise; the figure itself is the unit tests' matter.
    assert main(["latency", "--quick", "--inject-ms", "60", "--out", str(tmp_path)]) == 0
    data = json.loads((tmp_path / "latency.json").read_text())
    (one,) = data["paired"]
    assert one["failures"] == 0 and one["requests"] > 100
    assert one["chosen"] > 0
    median = one["quantiles"][0]
    assert median["level"] == 0.5
    assert 30 < median["difference_ms"]["value"] < 120
    assert data["verdicts"] == []
    for name in ("latency.md", "latency.html", "p1-0-latency.svg", "p1-0-added.svg"):
        assert (tmp_path / name).stat().st_size > 500, name


def test_chaos_puts_faults_in_and_sees_the_answers_change(tmp_path: Path) -> None:
    assert main(["chaos", "--quick", "--only", "rubbish_nan", "ranker_killed", "--out", str(tmp_path)]) == 0
    data = json.loads((tmp_path / "chaos.json").read_text())
    rubbish, ranker = data["stages"][0]["outcomes"]
    assert (rubbish["failed"], rubbish["refused"]) == (0, 0)
    assert rubbish["reasons"]["breaker_open"] > 0
    assert rubbish["back_s"] is not None
    assert ranker["failed"] == 0 and ranker["refused"] > 0
    assert set(ranker["problems"]) <= {"503 ranker_unavailable", "503 ranker_late"}
    for name in ("chaos.md", "chaos.html", "chaos-external.svg"):
        assert (tmp_path / name).stat().st_size > 500, name
