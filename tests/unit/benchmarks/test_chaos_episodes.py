"""Faults judged on records written down by hand: detection, recovery, failures, verdicts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest

from benchmarks.chaos.episodes import Episode, fault_free, judge, timeline
from benchmarks.chaos.faults import lying_faults, ranker_faults, supervised_faults, triton_faults
from benchmarks.chaos.measure import Measured, StageResult
from benchmarks.chaos.operations import disk_fault, policy_fault, replica_fault, store_fault
from benchmarks.chaos.page import render_page
from benchmarks.chaos.report import as_json, as_markdown
from benchmarks.chaos.settings import FAULTS, ChaosSettings
from benchmarks.chaos.verdicts import verdicts
from benchmarks.load.records import Recorder, Records
from benchmarks.stand_ins.behaviour import Behaviour
from triton_models.errors import BenchmarkError

RATE = 100
EPISODE = Episode(
    name="value_killed",
    title="killed",
    concerns="value_network",
    control_s=1000.0,
    began_s=1010.0,
    works_s=1020.0,
    ended_s=1030.0,
)


def load(answer: Any) -> Records:
    """100 requests a second from 1000 on, for 30 s; ``answer(at)`` → changes of a right, quick answer."""
    recorder = Recorder()
    for i in range(30 * RATE):
        due = 1000.0 + i / RATE
        found = {"ms": 20.0, "status": 200, "problem": None, "source": "value_network", "reason": None}
        found |= answer(due)
        recorder.add(
            phase=0,
            number=i,
            due_s=due,
            sent_s=due,
            ended_s=due + found["ms"] / 1e3,
            status=found["status"],
            problem=recorder.code(found["problem"]),
            source=recorder.code(found["source"]),
            reason=recorder.code(found["reason"]),
            arm=recorder.code(None),
            version=1,
            retries=0,
        )
    return recorder.records(1000.0)


def killed(at: float) -> dict[str, Any]:
    """0.25 s of failed calls and 30 ms; then the breaker is open and costs 1 ms; back 1.5 s after the end."""
    if 1010.0 <= at < 1010.25:
        return {"source": "production", "reason": "unavailable", "ms": 30.0}
    if 1010.25 <= at < 1021.5:
        return {"source": "production", "reason": "breaker_open", "ms": 21.0}
    return {}


def test_detection_recovery_and_latency_of_a_fault() -> None:
    records = load(killed)
    outcome = judge(records, EPISODE)
    assert (outcome.failed, outcome.refused) == (0, 0)
    assert outcome.detected_s == pytest.approx(0.25, abs=0.011)
    assert outcome.back_s == pytest.approx(1.5, abs=0.011)
    assert outcome.before.p99_ms == pytest.approx(20.0)
    assert outcome.open.p99_ms == pytest.approx(21.0)
    assert outcome.during.p99_ms is not None and outcome.during.p99_ms > 21.0
    assert outcome.reasons == {"breaker_open": 1125, "unavailable": 25}
    found = verdicts(outcome, fault_free(records, [EPISODE]))
    assert [verdict.hit for verdict in found] == [True, True, True]


def test_a_fault_put_in_twice_pools_its_windows_and_tells_the_slower_time() -> None:
    first = replace(EPISODE, control_s=1000.0, began_s=1002.0, works_s=1006.0, ended_s=1010.0)
    second = replace(EPISODE, control_s=1010.0, began_s=1012.0, works_s=1020.0, ended_s=1030.0)

    def answer(at: float) -> dict[str, Any]:
        if 1002.1 <= at < 1006.5:
            return {"source": "production", "reason": "breaker_open", "ms": 40.0}
        if 1012.4 <= at < 1022.0:
            return {"source": "production", "reason": "breaker_open", "ms": 21.0}
        return {}

    records = load(answer)
    outcome = judge(records, first, second)
    assert (outcome.episodes, outcome.episode) == (2, first)
    assert outcome.before.requests == pytest.approx(400, abs=8)  # what was under way is the fault's
    assert outcome.open.requests == pytest.approx(390 + 760, abs=4)
    assert outcome.open.p99_ms == pytest.approx(40.0)  # a third of the pooled requests
    assert outcome.open.p50_ms == pytest.approx(21.0)
    assert outcome.detected_s == pytest.approx(0.4, abs=0.011)
    assert outcome.back_s == pytest.approx(2.0, abs=0.011)
    never = replace(second, began_s=1024.0, works_s=1026.0)  # nothing showed that the breaker was open
    assert judge(records, first, never).detected_s is None


def test_slow_recovery_a_slow_breaker_and_a_failed_ranking_are_missed() -> None:
    def bad(at: float) -> dict[str, Any]:
        if at >= 1010.0 and at < 1026.0:
            failing = {"status": 500, "problem": "500 error"} if at < 1010.05 else {}
            return {"source": "production", "reason": "breaker_open", "ms": 26.0, **failing}
        return {}

    outcome = judge(load(bad), EPISODE)
    assert outcome.failed == 5
    found = verdicts(outcome, replace(outcome.before, p99_ms=20.0))
    assert [verdict.hit for verdict in found] == [False, False, False]
    assert "6.00 s" in found[2].line() and "MISSED" in found[2].line()


def test_a_value_network_that_never_comes_back_is_said_so() -> None:
    outcome = judge(load(lambda at: {"source": "production"} if at >= 1010.0 else {}), EPISODE)
    assert outcome.back_s is None
    assert "not back" in verdicts(outcome, outcome.before)[-1].line()


def test_the_rankers_own_refusals_are_no_failures_and_anything_else_is() -> None:
    def down(at: float) -> dict[str, Any]:
        if not 1010.0 <= at < 1020.0:
            return {}
        return {"status": 503, "problem": "503 ranker_unavailable" if at < 1019.9 else "503 overloaded"}

    episode = replace(EPISODE, concerns="ranker")
    outcome = judge(load(down), episode)
    assert (outcome.refused, outcome.failed) == (990, 10)
    assert [verdict.hit for verdict in verdicts(outcome, outcome.before)] == [False]
    # The same refusals without a fault of the ranker are failed rankings.
    other = judge(load(down), EPISODE)
    assert not verdicts(other, other.before)[0].hit


def test_a_supervised_server_counts_from_the_fault_and_only_once_it_was_away() -> None:
    def replaced(at: float) -> dict[str, Any]:
        return {"source": "production", "reason": "late"} if 1010.3 <= at < 1014.0 else {}

    outcome = judge(load(replaced), replace(EPISODE, supervised=True, works_s=1013.0))
    assert outcome.back_s == pytest.approx(4.0, abs=0.011)


def test_the_timeline_has_rates_fallbacks_and_gaps() -> None:
    def gap(at: float) -> dict[str, Any]:
        return killed(at) | ({"status": 0, "problem": "no answer"} if 1005.0 <= at < 1006.0 else {})

    seen = timeline(load(gap), bin_s=1.0)
    assert seen.rate_per_s[0] == RATE and seen.rate_per_s[5] == 0
    assert seen.failed_per_s[5] == RATE
    assert np.isnan(seen.p99_ms[5]) and seen.p99_ms[15] == pytest.approx(21.0)
    assert seen.fallback[15] == 1.0 and seen.fallback[25] == 0.0


def test_table_page_and_data_hold_every_fault() -> None:
    records = load(killed)
    outcome = judge(records, EPISODE)
    calm = fault_free(records, [EPISODE])
    stage = StageResult(
        name="external",
        title="a <stage>",
        rate_per_s=RATE,
        saturation={4: 200.0},
        records=records,
        episodes=(EPISODE,),
        outcomes=(outcome,),
        calm=calm,
        verdicts=tuple(verdicts(outcome, calm)),
        broken={"other": "no such process"},
    )
    machine = {"cores": 2, "cpu": "x", "load_average": 0.1, "time": "now", "command": "c"}
    run = Measured(settings=ChaosSettings(), network="n", machine=machine, stages=(stage,))
    text, page, data = as_markdown(run), render_page(run), as_json(run)
    assert "BUSY" not in text and "0.25 s" in text and "1.50 s" in text and "no such process" in text
    assert page.count("<svg") == 1 and "a &lt;stage&gt;" in page and page.count('class="fault"') == 3
    assert data["stages"][0]["outcomes"][0]["failed"] == 0


def test_faults_are_known_by_the_names_that_they_are_put_in_by(tmp_path: Path) -> None:
    nobody: Any = MagicMock(behaviour=Behaviour())
    found = {
        "external": [*triton_faults(nobody), *lying_faults(nobody, 200.0), *ranker_faults(nobody, 2000.0)],
        "supervised": supervised_faults(1, "r", "127.0.0.1:1"),
        "operations": [
            policy_fault(nobody),
            store_fault(nobody, nobody),
            replica_fault(nobody, []),
            disk_fault(tmp_path),
        ],
    }
    assert {stage: tuple(fault.name for fault in faults) for stage, faults in found.items()} == FAULTS


def test_a_fault_that_no_stage_has_is_refused_before_anything_is_started() -> None:
    with pytest.raises(BenchmarkError, match=r"no fault 'embedded_killed'.*value_killed.*ranker_killed"):
        ChaosSettings(stages=("external",), only=("value_killed", "embedded_killed"))
    assert ChaosSettings(stages=("supervised",), only=("embedded_killed",)).only == ("embedded_killed",)


@pytest.mark.parametrize("wrong", [{"stages": ("x",)}, {"stages": ()}, {"share": 2.0}, {"fault_s": 0.0}])
def test_impossible_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(BenchmarkError):
        ChaosSettings(**wrong)  # type: ignore[arg-type]
