"""The gate's benchmark counts what it says it counts."""

from __future__ import annotations

import pytest

from benchmarks.gate_error import Judged, at_most, summary
from triton_models.runs import Estimate, Level, RunVerdict


def verdict(level: Level, low: float, high: float) -> RunVerdict:
    nothing = Estimate(estimate=0.0, low=-1.0, high=1.0)
    return RunVerdict(
        level=level,
        text=level,
        versus_static=Estimate(estimate=(low + high) / 2, low=low, high=high),
        versus_production=nothing,
        calibrated=nothing,
        slopes=(),
        slope_errors=(),
        scalarizations=(),
        static_weights=(),
        same_as_static=0.0,
        rows=1,
        more_rows=10 if level == "not yet" else None,
    )


def test_passes_are_right_where_the_truth_is_above_and_wrong_where_it_is_not() -> None:
    better, unsure = verdict("better", 0.01, 0.03), verdict("not yet", -0.01, 0.03)
    found = summary(
        [
            Judged(network=0, gain=0.02, verdicts=(better, unsure)),
            Judged(network=1, gain=-0.02, verdicts=(better, unsure)),
        ]
    )
    assert (found["right_passes"], found["wrong_passes"], found["truly_above"]) == (1, 1, 1)
    assert found["wrong_pass_share"][0] == found["right_pass_share"][0] == 0.25
    # Networks are resampled: both could be the wrong one, or neither.
    assert found["wrong_pass_share"][1:] == [0.0, 0.5]
    assert found["interval_covers"] == 0.5
    assert found["levels"] == {"better": 2, "not yet": 2}
    assert found["more_rows"] == [10, 10]


def test_an_upper_end_of_a_share_by_hand() -> None:
    # None of n: 1 - 0.05^(1/n), about 3 / n.
    assert at_most(0, 60) == pytest.approx(1 - 0.05 ** (1 / 60))
    assert at_most(3, 3) == pytest.approx(1.0)
