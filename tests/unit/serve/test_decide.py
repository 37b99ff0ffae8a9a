from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from serve.decide import (
    OperatingPoint,
    Situation,
    ValueAnswer,
    check_answer,
    decide,
    refusal,
    remaining_wait_s,
)
from tests.unit.serve.support import SURFACE
from triton_models.errors import ConfigurationError

FINE = Situation(control=True, state_problem=None, link="verified", in_flight=0, max_in_flight=2)


def situation(**changes: Any) -> Situation:
    return Situation(**{**FINE.__dict__, **changes})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"in_flight": 1}, None),
        ({"in_flight": 2}, "overloaded"),
        ({"link": "unreachable"}, "unavailable"),
        ({"link": "open"}, "breaker_open"),
        ({"link": "mismatch"}, "surface_mismatch"),
        ({"state_problem": "state_invalid", "link": "unreachable"}, "state_invalid"),
        ({"control": False, "state_problem": "state_invalid", "link": "mismatch"}, "control_off"),
    ],
)
def test_why_the_value_network_is_not_asked(changes: dict[str, Any], reason: str | None) -> None:
    assert refusal(situation(**changes)) == reason


def test_remaining_wait_with_a_clock_of_our_own() -> None:
    # 10 ms from 100.000 s: at 100.004 six are left, at 100.010 and later none.
    assert remaining_wait_s(started_s=100.0, now_s=100.004, budget_ms=10) == pytest.approx(0.006)
    assert remaining_wait_s(started_s=100.0, now_s=100.010, budget_ms=10) == pytest.approx(0.0)
    assert remaining_wait_s(started_s=100.0, now_s=107.0, budget_ms=10) == 0.0


def answer(**changes: Any) -> ValueAnswer:
    # Action 4 of 3 x 3 is the middle of both grids: repin 105, p2p 15.5.
    honest = {
        "weights_W": np.array([105.0, 15.5], dtype=np.float32),
        "action": 4,
        "values_M": np.array([0.3, 0.4], dtype=np.float32),
    }
    return ValueAnswer(**{**honest, **changes})


def test_an_honest_answer_is_taken() -> None:
    decision = decide(SURFACE, answer())
    assert (decision.source, decision.reason, decision.action) == ("value_network", None, 4)
    assert decision.weights_W.tolist() == [105.0, 15.5]


@pytest.mark.parametrize(
    "changes",
    [
        {"action": -1},
        {"action": 9},
        {"action": 3},
        {"weights_W": np.array([np.nan, 15.5])},
        {"weights_W": np.array([np.inf, 15.5])},
        {"weights_W": np.array([106.0, 15.5])},
        {"weights_W": np.array([105.0])},
        {"weights_W": np.array([])},
        {"values_M": np.array([np.nan, 0.1])},
        {"values_M": np.array([0.1])},
    ],
)
def test_rubbish_is_not_believed(changes: dict[str, Any]) -> None:
    assert check_answer(SURFACE, answer(**changes)) is not None
    decision = decide(SURFACE, answer(**changes))
    assert (decision.source, decision.reason, decision.action) == ("production", "invalid_answer", None)
    assert decision.weights_W.tolist() == [91.6, 9.1]


def test_operating_point() -> None:
    point = OperatingPoint.parse(SURFACE, {"scalarization": [8, 2]})
    assert point.scalarization_M.tolist() == pytest.approx([0.8, 0.2])
    assert OperatingPoint.parse(SURFACE, {}).scalarization_M.tolist() == [0.5, 0.5]
    for bad in ([], {"x": 1}, {"control": 1}, {"scalarization": [1]}, {"scalarization": "a"}):
        with pytest.raises(ConfigurationError):
            OperatingPoint.parse(SURFACE, bad)
