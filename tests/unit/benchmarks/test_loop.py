"""The loop's pure parts: engagement by the feed's law, truth is paired, noise is called noise."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks.feed import config as c
from benchmarks.feed.config import WorldConfig
from benchmarks.feed.world import World
from benchmarks.loop.choice import Choice, choose
from benchmarks.loop.engagement import DELAY_S, engagement_events, slates_of_items
from benchmarks.loop.report import as_json, as_markdown
from benchmarks.loop.settings import LoopSettings
from benchmarks.loop.traffic import Sent
from benchmarks.loop.truth import Truth
from benchmarks.materials import DEFAULT_SURFACE
from triton_models.decision_format import event_schema
from triton_models.errors import BenchmarkError
from triton_models.surface import load_surface


@pytest.fixture(scope="module")
def world() -> World:
    config = WorldConfig(seed=3, requests=400, candidates=60, items=3000, users=200)
    return World(config, load_surface(DEFAULT_SURFACE))


def test_events_of_logged_actions_are_the_feeds_own_engagements(world: World) -> None:
    batch = world.requests(0, 300)
    actions = world.logged_actions(batch)
    slate = world.slates(batch, world.surface.actions[actions])
    answered = np.full(300, 1_700_000_000_000_000) + np.arange(300)
    table = engagement_events(world, batch, slate, answered, seed=1)
    assert table.schema == event_schema()
    counts, session = world.sample(batch, actions)
    rows = table.to_pylist()
    for name in ("repin", "p2p", "hide"):
        ids = [row["request_id"] for row in rows if row["event"] == name]
        found = np.array([ids.count(request_id) for request_id in batch.request_id])
        assert np.array_equal(found, counts[:, c.EVENTS.index(name)])
    assert sum(row["event"] == "successful_session" for row in rows) == session.sum()
    assert len({row["event_id"] for row in rows}) == len(rows)
    place = {request_id: i for i, request_id in enumerate(batch.request_id)}
    for row in rows:
        after_s = row["timestamp"].timestamp() - answered[place[row["request_id"]]] / 1e6
        assert -1e-3 <= after_s <= DELAY_S


def test_slates_of_served_items_are_their_places(world: World) -> None:
    batch = world.requests(0, 20)
    slate = world.slates(batch, world.surface.production)
    items = [batch.candidates[i][slate[i]].tolist() for i in range(20)]
    assert np.array_equal(slates_of_items(batch, items), slate)
    with pytest.raises(BenchmarkError, match="no candidate"):
        slates_of_items(batch, [[-1]] * 20)


def test_truth_of_production_weights_is_no_lift_and_of_others_is_the_feeds_own(world: World) -> None:
    batch = world.requests(0, 400)
    everybody = np.ones(400, dtype=bool)
    usual = np.broadcast_to(world.surface.production, (400, 2)).astype(np.float64)
    same = Truth(world)
    same.add(batch, usual, everybody)
    assert all(lift == pytest.approx(0.0, abs=1e-6) for lift, _, _ in same.lifts().values())
    other = Truth(world)
    strong = np.tile([10.0, 30.0], (400, 1))
    treated = np.arange(400) % 2 == 0
    other.add(batch, strong, treated)
    lifts = other.lifts()
    half = world.requests(0, 400)
    served = world.expected_rewards(half, weights=strong)[treated].mean(axis=0)
    base = world.expected_rewards(half, weights=world.surface.production)[treated].mean(axis=0)
    assert lifts["p2p"][0] == pytest.approx(served[1] / base[1] - 1, rel=1e-6)
    assert lifts["repin"][0] < 0 < lifts["p2p"][0]
    assert other.requests == 200


TESTED_ANYWAY = Choice(tested="knee", recommended="static", why="nothing is known to degrade nothing")


@dataclass
class FakeTurn:
    settings: LoopSettings
    explored: Sent
    tested: Sent
    frontier: Any
    experiment: dict[str, Any]
    truth: dict[str, tuple[float, float, float]]
    joined_rows: int = 50_000
    choice: Choice = TESTED_ANYWAY
    scalarization: tuple[float, ...] = (0.8, 0.2)
    extra: list[str] = field(default_factory=list)


def test_the_end_shows_three_lifts_and_says_where_noise_dominates(tmp_path: Any) -> None:
    point = SimpleNamespace(
        lifts={"repin": 0.01, "p2p": 0.02},
        intervals={"repin": (0.0, 0.02), "p2p": None},
        metrics={"hide": SimpleNamespace(lift=-0.01, interval=(-0.02, 0.0))},
    )
    cell = {
        "arm": "personalized",
        "policy_version": None,
        "cohort": None,
        "fallback_share": 0.25,
        "effects": {
            "repin": {"lift": 0.004, "interval": [-0.01, 0.018]},
            "p2p": {"lift": 0.03, "interval": [0.01, 0.05]},
        },
    }
    turn = FakeTurn(
        settings=LoopSettings(out=tmp_path),
        explored=Sent(requests=60_000),
        tested=Sent(requests=60_000),
        frontier=SimpleNamespace(candidate=lambda label: point),
        experiment={"cells": [cell, {**cell, "cohort": "core", "effects": {}}]},
        truth={"repin": (0.009, 0.008, 0.01), "p2p": (0.021, 0.02, 0.022), "hide": (0.0, -0.01, 0.01)},
    )
    text = as_markdown(turn)  # type: ignore[arg-type]
    assert "| p2p | +2.00 | +3.00 [+1.00, +5.00] | +2.10 [+2.00, +2.20] |" in text
    assert "| hide | -1.00 [-2.00, +0.00] | - | +0.00 [-1.00, +1.00] |" in text
    assert "repin: the test cannot tell" in text and "p2p: the test" not in text
    assert "**Recommended: static** (nothing is known to degrade nothing)" in text
    assert "25.0 % of the arm's requests got production weights" in text
    data = as_json(turn)  # type: ignore[arg-type]
    assert (data["operating_point"], data["recommended"]) == ("knee", "static")
    assert data["lifts"]["repin"]["measured"] == {"lift": 0.004, "interval": [-0.01, 0.018]}


def chosen(
    *, candidates: dict[str, bool], passed: bool | None = True, asked_for: str | None = None
) -> tuple[str, str]:
    known = {
        label: SimpleNamespace(lower_bounds_not_negative=safe, point=0) for label, safe in candidates.items()
    }
    verdict = None if passed is None else SimpleNamespace(passed=passed, text="not yet: too few rows")
    frontier: Any = SimpleNamespace(candidates=known)
    choice = choose(frontier, verdict, asked_for=asked_for)  # type: ignore[arg-type]
    return choice.tested, choice.recommended


def test_a_point_is_recommended_where_gate_and_lower_bounds_allow_it() -> None:
    safe = {"repin_leaning": False, "knee": False, "non_degrading": True}
    assert chosen(candidates=safe) == ("non_degrading", "non_degrading")
    assert chosen(candidates=safe, passed=None) == ("non_degrading", "non_degrading")
    assert chosen(candidates=safe, asked_for="knee") == ("knee", "non_degrading")
    assert chosen(candidates=safe, passed=False)[1] == "static"
    assert chosen(candidates={**safe, "non_degrading": False})[1] == "static", "by its estimate only"
    # The loop is made whole, but nobody is told that this is what to apply.
    assert chosen(candidates={"repin_leaning": True, "knee": False}) == ("knee", "static")
    with pytest.raises(BenchmarkError):
        chosen(candidates={})


@pytest.mark.parametrize("wrong", [{"requests": 10}, {"exploration": 0.0}, {"callers": 0}])
def test_impossible_turns_are_refused(tmp_path: Any, wrong: dict[str, Any]) -> None:
    with pytest.raises(BenchmarkError):
        LoopSettings(out=tmp_path, **wrong)
