"""Arrivals, plans and records of a load: known numbers, and what is written reads back the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.load.plan import Phase, Plan, arrival_offsets
from benchmarks.load.records import Recorder, Records, load_records
from triton_models.errors import BenchmarkError


@given(rate=st.floats(0.5, 2000), seconds=st.floats(0.1, 20), seed=st.integers(0, 1000))
def test_poisson_arrivals_are_increasing_inside_the_phase_and_as_many_as_asked(
    rate: float, seconds: float, seed: int
) -> None:
    times = arrival_offsets(rate_per_s=rate, seconds=seconds, arrivals="poisson", seed=seed)
    assert (np.diff(times) > 0).all()
    assert len(times) == 0 or (times[0] > 0 and times[-1] < seconds)
    # Six standard deviations: never cut short by how many gaps were drawn.
    assert abs(len(times) - rate * seconds) <= 6 * np.sqrt(rate * seconds) + 6


def test_equal_seeds_arrive_together_and_others_do_not() -> None:
    one, same, other = (
        arrival_offsets(rate_per_s=50, seconds=4, arrivals="poisson", seed=seed) for seed in (3, 3, 4)
    )
    assert np.array_equal(one, same)
    assert not np.array_equal(one[:50], other[:50])


def test_constant_arrivals() -> None:
    times = arrival_offsets(rate_per_s=4, seconds=1, arrivals="constant", seed=0)
    assert times.tolist() == [0.0, 0.25, 0.5, 0.75]


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"rate_per_s": 5.0, "in_flight": 2},
        {"rate_per_s": 0.0},
        {"rate_per_s": float("nan")},
        {"in_flight": 0},
        {"in_flight": 1, "seconds": 0.0},
        {"in_flight": 1, "seconds": float("inf")},
    ],
)
def test_impossible_phases_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(BenchmarkError, match="arm"):
        Phase(**{"name": "arm", "url": "http://127.0.0.1:1", "seconds": 1.0, **wrong})  # type: ignore[arg-type]


def test_a_plan_reads_back(tmp_path: Path) -> None:
    import json

    phases = (
        Phase(name="a", url="http://127.0.0.1:1", seconds=2.0, rate_per_s=5.0, control=False, seed=7),
        Phase(name="b", url="http://127.0.0.1:1", seconds=1.5, in_flight=3),
    )
    plan = Plan(phases=phases, traffic=tmp_path / "t.jsonl", surface={"name": "x"}, arrivals="constant")
    plan.write(tmp_path / "plan.json")
    assert Plan.from_dict(json.loads((tmp_path / "plan.json").read_text())) == plan
    assert plan.seconds == 3.5


def recorded() -> Records:
    recorder = Recorder()
    for i, (status, problem, reason) in enumerate(
        [(200, None, None), (200, None, "late"), (503, "503 x", None)]
    ):
        recorder.add(
            phase=i,
            number=i,
            due_s=10.0 + i,
            sent_s=10.1 + i,
            ended_s=10.5 + i,
            status=status,
            problem=recorder.code(problem),
            source=recorder.code("production" if reason else "value_network"),
            reason=recorder.code(reason),
            arm=recorder.code(None),
            version=i,
            retries=0,
        )
    return recorder.records(10.0)


def test_records_count_from_when_a_request_was_due_and_read_back(tmp_path: Path) -> None:
    records = recorded()
    records.save(tmp_path / "records.npz")
    again = load_records(tmp_path / "records.npz")
    assert again.words == records.words and again.began_s == 10.0
    assert again.latency_ms.tolist() == pytest.approx([500.0] * 3)
    assert again.ok.tolist() == [True, True, False]
    assert again.counts("reason") == {"late": 1}
    assert again.counts("problem") == {"503 x": 1}
    assert len(again.due_between(11.0, 12.0)) == 1
    assert again.code("never said") == -1


def test_missing_records_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="no records of a load"):
        load_records(tmp_path / "records.npz")
