"""The circuit breaker: worked cases with a clock of our own, then properties over any course of events."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from serve.breaker import Breaker, BreakerConfig, Decision, Event, Kind, after

CONFIG = BreakerConfig()


def play(
    events: str, *, config: BreakerConfig = CONFIG, breaker: Breaker | None = None, step_s: float = 0.001
) -> tuple[Breaker, list[Kind]]:
    """One event per letter: a(nswered), l(ate), f(ailed); the turns they make."""
    names: dict[str, Event] = {"a": "answered", "l": "late", "f": "failed"}
    breaker, turns = breaker or Breaker(), []
    for i, letter in enumerate(events):
        breaker, decision = after(breaker, names[letter], 100.0 + i * step_s, config)
        if decision.turned:
            turns.append(decision.turned)
    return breaker, turns


@pytest.mark.parametrize(
    ("events", "opens"),
    [
        ("ff", False),
        ("fff", True),
        ("ffaff", False),
        ("l" * 7, False),
        ("l" * 8, True),
        ("f" + "l" * 7, True),  # eight without an answer in time
        ("lllallla" * 2, False),  # twelve of sixteen: fewer than 20 calls say nothing
        ("llla" * 4 + "lll", False),  # nineteen
        ("llla" * 4 + "llll", True),  # 16 of 20 are late
        ("la" * 10 + "l", True),  # half of them
        ("laa" * 200, False),  # a third
    ],
)
def test_what_opens(events: str, opens: bool) -> None:
    breaker, turns = play(events)
    assert (breaker.kind, turns) == (("open", ["open"]) if opens else ("closed", []))


def test_what_is_stuck_opens_at_once() -> None:
    assert after(Breaker(), "stuck", 1.0, CONFIG)[1] == Decision(probe=False, wait_s=0.5, turned="open")


def test_the_window_slides() -> None:
    # Ten late of ten, three in a row at most; 6 s later (another half of the window) they still count,
    # 11 s later they do not.
    breaker, _ = play("lllalllalllall"[:10] + "a")
    for later_s, kind in ((106.0, "open"), (111.0, "closed")):
        seen = breaker
        for i in range(12):
            event: Event = "late" if i % 4 else "answered"
            seen, _ = after(seen, event, later_s + i * 0.001, CONFIG)
            if seen.kind == "open":
                break
        assert seen.kind == kind, later_s


def test_open_half_open_closed() -> None:
    breaker, _ = play("fff")  # opened at 100.002
    assert breaker.due_s == pytest.approx(100.502)
    breaker, decision = after(breaker, "due", 100.4, CONFIG)
    assert (decision.probe, decision.wait_s) == (False, pytest.approx(0.102))
    breaker, decision = after(breaker, "due", 100.6, CONFIG)
    assert decision == Decision(probe=True, wait_s=0.0, turned="half_open")
    assert not breaker.admits
    turns = []
    for now_s in (100.60, 100.70, 100.80):
        breaker, decision = after(breaker, "answered", now_s, CONFIG)
        turns.append(decision.turned)
    assert turns == [None, None, "closed"]
    assert breaker.admits


def test_failing_probes_wait_twice_as_long_up_to_the_limit() -> None:
    breaker, _ = play("fff")
    pauses = []
    for now_s in (101.0, 103.0, 105.0):
        breaker, decision = after(breaker, "due", now_s, CONFIG)
        assert decision.probe
        breaker, decision = after(breaker, "late", now_s, CONFIG)
        pauses.append((decision.turned, decision.wait_s))
    assert pauses == [("open", 1.0)] * 3


def closed_again(breaker: Breaker, now_s: float) -> Breaker:
    breaker, _ = after(breaker, "due", now_s, CONFIG)
    for _ in range(CONFIG.successes):
        breaker, _ = after(breaker, "answered", now_s, CONFIG)
    assert breaker.kind == "closed"
    return breaker


def test_on_parole_little_is_forgiven_and_the_pause_grows() -> None:
    breaker, _ = play("fff")
    now_s, pauses = 101.0, []
    for _ in range(4):
        breaker = closed_again(breaker, now_s)
        for expected in ("closed", "open"):  # two late calls
            breaker, decision = after(breaker, "late", now_s, CONFIG)
            assert breaker.kind == expected
        pauses.append(decision.wait_s)
        now_s += decision.wait_s + 0.01
    assert pauses == [1.0, 2.0, 3.0, 3.0]
    assert after(closed_again(breaker, now_s), "failed", now_s, CONFIG)[0].kind == "open"


def test_an_answer_ends_the_strictness_and_time_the_relapse() -> None:
    breaker = closed_again(play("fff")[0], 101.0)
    breaker, _ = after(breaker, "answered", 101.1, CONFIG)
    for _ in range(2):
        breaker, _ = after(breaker, "failed", 120.0, CONFIG)
        assert breaker.kind == "closed"
    breaker, decision = after(breaker, "failed", 120.0, CONFIG)
    assert (breaker.kind, decision.wait_s) == ("open", CONFIG.open_s)


def test_calls_of_an_earlier_epoch_say_nothing() -> None:
    breaker = closed_again(play("fff")[0], 101.0)
    for epoch in range(breaker.epoch):
        assert after(breaker, "failed", 101.0, CONFIG, epoch=epoch)[0] is breaker
    assert after(breaker, "failed", 101.0, CONFIG, epoch=breaker.epoch)[0].kind == "open"


@pytest.mark.parametrize(
    "changes", [{"failures": 0}, {"share": 1.5}, {"open_limit_s": 0.1}, {"relapse_limit_s": 0.1}, {"x": 1}]
)
def test_impossible_settings(changes: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        BreakerConfig.model_validate(changes)


CONFIGS = st.builds(
    BreakerConfig,
    failures=st.integers(1, 6),
    late=st.integers(1, 12),
    share=st.floats(0.05, 1.0),
    minimum=st.integers(1, 30),
    successes=st.integers(1, 5),
)
COURSE = st.lists(
    st.tuples(st.sampled_from(["answered", "late", "failed", "stuck", "due"]), st.floats(0.0, 3.0)),
    max_size=150,
)


@given(CONFIGS, COURSE)
def test_whatever_happens(config: BreakerConfig, course: list[tuple[Event, float]]) -> None:
    breaker, now_s, last_epoch = Breaker(), 0.0, 0
    for event, step_s in course:
        now_s += step_s
        before = breaker
        breaker, decision = after(breaker, event, now_s, config)
        assert breaker.epoch >= last_epoch, "epochs only grow"
        last_epoch = breaker.epoch
        assert breaker.bad <= breaker.calls and breaker.bad_before <= breaker.calls_before
        assert 0.0 <= decision.wait_s <= max(config.open_limit_s, config.relapse_limit_s)
        if decision.probe:
            assert event == "due" and not breaker.admits, "requests never probe"
            assert now_s >= before.due_s
        if decision.turned is not None:
            assert decision.turned == breaker.kind
        if before.kind == "closed" and breaker.kind != "closed":
            assert event in ("late", "failed", "stuck") and breaker.kind == "open"
        if before.kind != "closed" and breaker.kind == "closed":
            assert before.kind == "half_open" and event == "answered"
        if breaker.kind == "closed":
            assert breaker.failed_in_row < config.failures or event == "answered" or before is breaker


@given(CONFIGS, COURSE)
def test_a_server_that_works_again_is_back_in_bounded_time(
    config: BreakerConfig, course: list[tuple[Event, float]]
) -> None:
    breaker, now_s = Breaker(), 0.0
    for event, step_s in course:
        now_s += step_s
        breaker, _ = after(breaker, event, now_s, config)
    began_s = now_s
    while not breaker.admits:  # as serve.links does: wait, probe, and the probe is answered at once
        breaker, decision = after(breaker, "due", now_s, config)
        if decision.probe:
            breaker, decision = after(breaker, "answered", now_s, config)
        now_s += decision.wait_s
        assert now_s - began_s < 5.0
    assert now_s - began_s <= max(config.open_limit_s, config.relapse_limit_s) + 0.1 * config.successes + 1e-6


@given(CONFIGS, st.integers(0, 60))
def test_a_server_that_never_answers_costs_a_bounded_number_of_requests(
    config: BreakerConfig, good: int
) -> None:
    breaker, asked = Breaker(), 0
    for _ in range(good):
        breaker, _ = after(breaker, "answered", 50.0, config)
    while breaker.admits:
        breaker, _ = after(breaker, "late", 50.0, config)
        asked += 1
    assert asked <= config.late
