"""Statistics of interleaved blocks against known answers."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.latency.blocks import Block, Estimate, Saturation, added, order_of_arms, rate_ratio
from benchmarks.latency.measure import Measured, Paired
from benchmarks.latency.page import render_page
from benchmarks.latency.report import Verdict, as_json, as_markdown, verdicts
from benchmarks.latency.settings import LatencySettings
from benchmarks.sidecar.contestants import BARE, SIDECAR
from triton_models.errors import BenchmarkError


def blocks(shift_ms: float, *, count: int = 24, drift_ms: float = 0.0, seed: int = 1) -> list[Block]:
    """Log-normal latencies; the on arm is later by ``shift_ms``, block b as a whole by ``b · drift_ms``."""
    rng = np.random.default_rng(seed)
    found = []
    for b in range(count):
        base = rng.lognormal(np.log(15.0), 0.4, size=800) + b * drift_ms
        noise = rng.normal(0.0, 0.05, size=(2, 800))
        found.append(Block(base + shift_ms + noise[0], base + noise[1]))
    return found


@pytest.mark.parametrize("shift_ms", [0.0, 0.25, 2.0])
def test_an_injected_delay_is_found_at_every_quantile(shift_ms: float) -> None:
    for level in (0.5, 0.9, 0.99):
        row = added(blocks(shift_ms), level)
        assert row.difference.value == pytest.approx(shift_ms, abs=0.12)
        assert row.difference.low - 0.06 <= shift_ms <= row.difference.high + 0.06
        assert len(row.per_block) == 24


def test_a_drift_of_the_machine_is_not_charged_to_an_arm() -> None:
    row = added(blocks(0.3, drift_ms=2.0), 0.5)
    assert row.difference.value == pytest.approx(0.3, abs=0.15)


def test_a_small_case_by_hand() -> None:
    # on: 1 2 3 | 4 5 6, off: 1 1 1 | 2 2 2; the medians are the third smallest of six: 3 and 1.
    two = [
        Block(np.array([1.0, 2, 3]), np.array([1.0, 1, 1])),
        Block(np.array([4.0, 5, 6]), np.array([2.0, 2, 2])),
    ]
    row = added(two, 0.5)
    assert (row.on_ms, row.off_ms, row.difference.value) == (3.0, 1.0, 2.0)
    # Resamples are block 1 twice (2 - 1), block 2 twice (5 - 2), or both (3 - 1).
    assert (row.difference.low, row.difference.high) == (1.0, 3.0)
    assert row.per_block == (1.0, 3.0)


def test_too_little_is_refused() -> None:
    with pytest.raises(BenchmarkError, match="at least 2 blocks"):
        added(blocks(0.0, count=1), 0.5)
    with pytest.raises(BenchmarkError, match="in both arms"):
        added([Block(np.ones(3), np.ones(0))] * 2, 0.5)
    with pytest.raises(BenchmarkError, match="same turns"):
        rate_ratio([1.0, 2.0], [1.0])


def test_ratio_of_rates_is_paired_by_turn() -> None:
    base = np.array([100.0, 400.0, 50.0, 300.0])  # the machine's other work comes and goes
    ratio = rate_ratio((0.9 * base).tolist(), base.tolist())
    assert ratio.value == ratio.low == ratio.high == pytest.approx(0.9)


def test_saturation_is_the_largest_rate_and_the_fewest_callers_that_reach_it() -> None:
    rates = {1: 60.0, 2: 120.0, 4: 196.0, 8: 200.0, 16: 190.0}
    found = Saturation(rates=rates, chosen=dict.fromkeys(rates, 1.0))
    assert found.rate_per_s == 200.0
    assert found.in_flight == 4


def test_a_rate_of_cheap_fallbacks_is_no_saturation() -> None:
    found = Saturation(rates={4: 190.0, 8: 200.0, 16: 900.0}, chosen={4: 1.0, 8: 0.97, 16: 0.02})
    assert found.rate_per_s == 200.0
    nothing_chosen = Saturation(rates={4: 190.0, 8: 200.0}, chosen={4: 0.0, 8: 0.0})
    assert nothing_chosen.rate_per_s == 200.0


def test_arms_alternate_so_that_drift_cancels() -> None:
    order = [arm for block in range(4) for arm in order_of_arms(block)]
    places = {arm: [i for i, other in enumerate(order) if other is arm] for arm in (True, False)}
    assert sum(places[True]) == sum(places[False])


@pytest.mark.parametrize(
    ("value", "low", "high", "hit", "certain"),
    [(0.2, 0.1, 0.25, True, True), (0.2, 0.1, 0.4, True, False), (0.5, 0.35, 0.6, False, True)],
)
def test_verdicts_say_hit_or_missed_and_how_surely(
    value: float, low: float, high: float, hit: bool, certain: bool
) -> None:
    estimate = Estimate(value=value, low=low, high=high)
    verdict = Verdict(target="P1: Δp50", limit=0.3, at_most=True, estimate=estimate, unit="ms")
    assert (verdict.hit, verdict.certain) == (hit, certain)
    assert ("MISSED" in verdict.line()) is not hit
    assert ("interval holds the limit" in verdict.line()) is not certain


def measured(**changes: object) -> Measured:
    saturation = Saturation(rates={1: 60.0, 8: 240.0}, chosen={1: 1.0, 8: 1.0})
    one = Paired(
        part="P1",
        title="ranker elsewhere",
        loop="open, 120 requests/s",
        share=0.5,
        saturation=saturation,
        blocks=tuple(blocks(0.2, count=4)),
        requests=6400,
        failures=0,
        problems={},
        chosen=3199,
        asked=3200,
        fallbacks={"late": 1},
        lateness_ms=(0.1, 0.9),
    )
    values = {
        "settings": LatencySettings(),
        "network": "stand-in",
        "paired": (one,),
        "capacity": {BARE: (300.0, 310.0), SIDECAR: (290.0, 291.0)},
        "capacity_chosen": {SIDECAR: 0.999},
        "in_flight": 16,
        "machine": {"cores": 2, "cpu": "x<y", "load_average": 7.0, "time": "now", "command": "c"},
        **changes,
    }
    return Measured(**values)  # type: ignore[arg-type]


def test_table_page_and_data_say_the_same_and_a_busy_machine_is_called_busy() -> None:
    run = measured()
    text, page, data = as_markdown(run), render_page(run), as_json(run)
    assert "BUSY" in text
    assert [v.hit for v in verdicts(run)] == [True, True, True]
    assert "99.97%" in text and "0.95 [" in text
    assert data["verdicts"][0]["hit"] is True
    assert "x&lt;y" in page and page.count("<svg") == 3
    assert data["capacity"]["ratio_to_bare"][SIDECAR]["value"] == pytest.approx(0.9525, abs=1e-3)


def test_a_verdict_says_when_the_on_arm_was_mostly_fallbacks() -> None:
    from dataclasses import replace

    one = measured().paired[0]
    assert "chosen" not in verdicts(measured())[0].line()
    assert "only 59% chosen" in verdicts(measured(paired=(replace(one, chosen=1888),)))[0].line()


def test_a_quick_run_judges_nothing() -> None:
    run = measured(settings=LatencySettings().quickened())
    assert verdicts(run) == []
    assert "figures are none" in as_markdown(run)


@pytest.mark.parametrize(
    "wrong", [{"parts": ("p9",)}, {"parts": ()}, {"blocks": 1}, {"settle_s": 9.0}, {"share": 0.0}]
)
def test_impossible_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(BenchmarkError):
        LatencySettings(**wrong)  # type: ignore[arg-type]
