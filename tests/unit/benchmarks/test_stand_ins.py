"""What stand-ins answer and how long they take: pure, with known distributions."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.stand_ins.behaviour import Behaviour, injected_ms, ranker_answer, replayed_ms, value_answer
from serve.decide import ValueAnswer, check_answer
from tests.support.surfaces import small_surface
from triton_models.errors import BenchmarkError

SURFACE = small_surface()


def test_replayed_times_have_the_stated_quantiles_and_belong_to_their_request() -> None:
    behaviour = Behaviour(p50_ms=15.0, p99_ms=40.0)
    times = np.array([replayed_ms(behaviour, str(i).encode()) for i in range(20_000)])
    assert np.quantile(times, 0.5) == pytest.approx(15.0, rel=0.02)
    assert np.quantile(times, 0.99) == pytest.approx(40.0, rel=0.05)
    assert replayed_ms(behaviour, b"7") == times[7]


def test_a_slow_server_is_slower_by_what_was_said() -> None:
    assert replayed_ms(Behaviour(extra_ms=200.0), b"x") == 200.0
    honest = replayed_ms(Behaviour(p50_ms=15.0, p99_ms=40.0), b"x")
    assert replayed_ms(Behaviour(p50_ms=15.0, p99_ms=40.0, extra_ms=3.0), b"x") == pytest.approx(honest + 3.0)


@pytest.mark.parametrize(
    ("tracestate", "ms"),
    [("puts-delay=2", 2.0), ("other=1,puts-delay=0.5", 0.5), ("", 0.0), ("puts-delay=x", 0.0)],
)
def test_injected_delays(tracestate: str, ms: float) -> None:
    assert injected_ms(tracestate) == ms


def test_honest_answers_are_believed_and_lies_are_not() -> None:
    problems = {}
    for mode in ("honest", "nan", "off_grid", "wrong_shape"):
        arrays = value_answer(mode, SURFACE, b"user")  # type: ignore[arg-type]
        answer = ValueAnswer(
            weights_W=arrays["weights"][0], action=int(arrays["action"][0, 0]), values_M=arrays["values"][0]
        )
        problems[mode] = check_answer(SURFACE, answer)
    assert problems["honest"] is None
    assert all(problems[mode] for mode in ("nan", "off_grid", "wrong_shape"))
    assert value_answer("empty", SURFACE, b"user") == {}


def test_rankers_answers() -> None:
    assert ranker_answer("honest", count=7, heads=3)["scores"].shape == (1, 7, 3)
    assert np.isnan(ranker_answer("nan", count=7, heads=3)["scores"]).any()
    assert ranker_answer("wrong_shape", count=7, heads=3)["scores"].shape == (1, 6, 3)


@pytest.mark.parametrize(
    "wrong", [{"mode": "odd"}, {"p50_ms": 5.0}, {"p99_ms": 5.0}, {"extra_ms": -1.0}, {"speed": 1}]
)
def test_impossible_behaviour_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(BenchmarkError):
        Behaviour.parse(wrong)
