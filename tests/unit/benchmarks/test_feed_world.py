"""Determinism, encoding, and the closed form of expected rewards."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.feed import config as c
from benchmarks.feed.config import WorldConfig
from benchmarks.feed.requests import BLOCK
from benchmarks.feed.world import World, load_world, save_world
from triton_models.encoding import encode_state
from triton_models.errors import SimulationError
from triton_models.surface import Surface


@settings(deadline=None, max_examples=15)
@given(first=st.integers(0, 3 * BLOCK), count=st.integers(1, BLOCK + 5), cut=st.floats(0, 1))
def test_requests_do_not_depend_on_the_partition(world: World, first: int, count: int, cut: float) -> None:
    whole = world.requests(first, count)
    middle = int(cut * count)
    parts = [world.requests(first, middle), world.requests(first + middle, count - middle)]
    names = ("user", "timestamp", "context", "intent", "history_item", "history_age_s", "request_id")
    for name in (*names, "candidates"):
        joined = np.concatenate([getattr(part, name) for part in parts])
        np.testing.assert_array_equal(getattr(whole, name), joined)
    counts = np.concatenate([world.sample(part)[0] for part in parts])
    np.testing.assert_array_equal(world.sample(whole)[0], counts)


def test_seeds_make_different_worlds_and_equal_seeds_equal_ones(world: World, homefeed: Surface) -> None:
    again, other = (World(world.config.model_copy(update={"seed": seed}), homefeed) for seed in (3, 4))
    here = world.expected_rewards(world.requests(700, 20))
    np.testing.assert_array_equal(here, again.expected_rewards(again.requests(700, 20)))
    assert np.abs(here - other.expected_rewards(other.requests(700, 20))).max() > 0.01


def test_time_runs_from_the_first_logged_day_into_the_future(world: World) -> None:
    stamps = world.requests(0, world.config.requests + 300).timestamp
    assert (np.diff(stamps) > np.timedelta64(0)).all()
    start, end = (np.datetime64(t.replace(tzinfo=None), "us") for t in (world.config.start, world.config.end))
    assert stamps[0] >= start
    assert stamps[world.config.requests - 1] < end <= stamps[world.config.requests]


def test_batch_encoding_equals_encode_state(world: World, homefeed: Surface) -> None:
    data = homefeed.to_dict()
    data["state"]["history"]["length"] = 4  # shorter than most histories
    data["state"]["history"]["actions"] = ["hide", "save"]  # others are left out, and in another order
    for surface in (homefeed, Surface.from_dict(data)):
        batch = world.requests(100, 60)
        tensors = batch.state_tensors(surface)
        for row in range(len(batch)):
            expected = encode_state(surface, batch.state(row))
            assert set(expected) == set(tensors)
            for name, value in expected.items():
                assert tensors[name].dtype == value.dtype
                np.testing.assert_array_equal(tensors[name][row], value, err_msg=name)


def test_candidates_are_distinct_and_redrawn(world: World) -> None:
    batch = world.requests(0, 50)
    again = world.redraw(batch, 1)
    for candidates in (batch.candidates, again.candidates):
        assert candidates.shape == (50, world.config.candidates)
        assert all(len(set(row)) == len(row) for row in candidates.tolist())
        assert candidates.min() >= 0 and candidates.max() < world.config.items
    assert (batch.candidates != again.candidates).mean() > 0.9


# ----------------------------------------------------------------- the closed form, by hand and by chance


def naive_slot_chances(world: World, row: int, weights: np.ndarray) -> np.ndarray:
    """Chance of each engagement in each slot of request ``row``, straight from the definition, [K, 5]."""
    batch = world.requests(row, 1)
    scores = world.head_scores(batch)[0].astype(np.float64)
    utility = scores @ np.concatenate([weights, world.surface.fixed_weights])
    served = np.argsort(-utility.astype(np.float32), kind="stable")[: world.config.k]
    behaviour, ranker = world.config.behaviour, world.ranker
    user = batch.user[0]
    tau = ranker.contrast_scale * np.exp(ranker.contrast_spread * world.users.traits[user, c.CONTRAST])
    chances, seen = [], []
    for slot, position in enumerate(served):
        item = batch.candidates[0, position]
        topic = world.items.topic[item]
        exam = (slot + 1) ** -behaviour.exam_decay * behaviour.satiation ** seen.count(topic)
        seen.append(topic)
        row_chances = []
        for event in range(5):
            effect = np.exp(tau * np.array(behaviour.intent[event]))
            drift = 1 + behaviour.drift[event] * min(batch.day[0], 1)
            p = scores[position, event] / (effect @ batch.prior[0]) * effect[batch.intent[0]] * drift
            row_chances.append(exam * min(p, 0.98))
        chances.append(row_chances)
    return np.array(chances)


@pytest.mark.parametrize("row", [0, 777, 5999, 7000])
def test_expected_rewards_follow_the_definition(world: World, row: int) -> None:
    batch = world.requests(row, 1)
    values = world.expected_rewards(batch)[0]
    for action in (0, 6, 20, 42, 48):
        none = (1 - naive_slot_chances(world, row, world.surface.actions[action])).prod(axis=0)
        session = (1 - none[0] * none[1] * none[2]) * none[4]
        expected = [1 - none[0], 1 - none[1], session, 1 - none[4]]
        np.testing.assert_allclose(values[action], expected, atol=2e-4)
        np.testing.assert_allclose(world.expected_rewards(batch, [action])[0], values[action], atol=1e-12)


def test_expected_rewards_equal_a_monte_carlo_simulation(world: World) -> None:
    rng, draws = np.random.default_rng(0), 20_000
    for row in (5, 2500):
        batch = world.requests(row, 1)
        chance = world.slot_probabilities(batch, world.slates(batch, world.surface.production))[0]
        happened = (rng.random((draws, *chance.shape)) < chance).any(axis=1)
        session = happened[:, :3].any(axis=1) & ~happened[:, 4]
        mean = np.array([happened[:, 0].mean(), happened[:, 1].mean(), session.mean(), happened[:, 4].mean()])
        exact = world.expected_rewards(batch, weights=world.surface.production)[0]
        assert (np.abs(mean - exact) < 4.5 * np.sqrt(exact * (1 - exact) / draws) + 1e-4).all()


def test_logged_rewards_agree_with_their_expectation(world: World) -> None:
    batch = world.requests(0, world.config.requests)
    action = world.logged_actions(batch)
    assert np.bincount(action, minlength=49).min() > 70  # uniform: about 122 each
    counts, session = world.sample(batch)
    exact = world.expected_rewards(batch, action)
    for column, seen in enumerate([counts[:, 0] > 0, counts[:, 1] > 0, session, counts[:, 4] > 0]):
        error = np.sqrt((exact[:, column] * (1 - exact[:, column])).sum()) / len(batch)
        assert abs(seen.mean() - exact[:, column].mean()) < 4.5 * error


def test_policies_served_together_get_what_each_gets_alone(world: World) -> None:
    batch = world.requests(5500, 700)  # in the log and after it
    vector_VW = np.concatenate([world.surface.actions[[0, 13, 48]], [world.surface.production, [55.5, 3.3]]])
    vector_nP = np.random.default_rng(2).integers(0, len(vector_VW), (len(batch), 6))
    vector_nP[:, 5] = 4
    expected, counts, session = world.serve(batch, vector_VW, vector_nP)
    assert len({*map(tuple, counts[:, :5].reshape(-1, 5).tolist())}) > 10
    for p in range(6):
        weights = vector_VW[vector_nP[:, p]]
        alone = world.engage(batch, world.slates(batch, weights))
        np.testing.assert_array_equal(counts[:, p], alone[0])
        np.testing.assert_array_equal(session[:, p], alone[1])
        np.testing.assert_allclose(expected[:, p], world.expected_rewards(batch, weights=weights), rtol=1e-12)


def test_slates_are_the_top_of_utility(world: World) -> None:
    batch = world.requests(40, 5)
    weights = np.array([[91.6, 9.1], [10, 30], [200, 1], [10, 1], [50, 20]])
    positions = world.slates(batch, weights, 10)
    full = np.concatenate([weights, np.tile(world.surface.fixed_weights, (5, 1))], axis=1)
    utility = np.einsum("nch,nh->nc", world.head_scores(batch), full)
    best = np.sort(utility, axis=1)[:, ::-1][:, :10]
    np.testing.assert_allclose(np.take_along_axis(utility, positions, axis=1), best, rtol=1e-5)


# ------------------------------------------------------------------------------------------- bad input


def test_the_world_file_reads_back(world: World, tmp_path: Path) -> None:
    save_world(world, tmp_path)
    again = load_world(tmp_path)
    assert again.config == world.config
    assert again.surface.fingerprint == world.surface.fingerprint


@pytest.mark.parametrize("text", [None, "", "{}", "[]", '{"version": 99}', '{"version": 1, "config": {}}'])
def test_a_missing_or_damaged_world_file_is_one_line(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "_world.json").write_text(text)
    with pytest.raises(SimulationError) as caught:
        load_world(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_surface_that_the_feed_cannot_fill_is_refused(surface: Surface) -> None:
    with pytest.raises(SimulationError, match=r"user_embedding 4 .*history embedding 3 .*context device"):
        World(WorldConfig(), surface)


def test_more_objectives_and_other_head_orders_work(homefeed: Surface) -> None:
    data = homefeed.to_dict()
    data["objectives"] = ["click", "repin", "p2p"]
    data["controlled"] = [
        {"head": "click", "minimum": 0, "maximum": 50, "points": 2, "production": 10},
        *({**weight, "points": 2} for weight in data["controlled"][::-1]),
    ]
    data["fixed"] = {"hide": -40.0}
    data["metrics"] = []
    three = World(WorldConfig(seed=3, requests=6000), Surface.from_dict(data))
    batch = three.requests(0, 200)
    values = three.expected_rewards(batch).mean(axis=0)
    assert values.shape == (8, 3)
    assert three.head_scores(batch).shape == (200, 240, 4)
    assert values[4:, 0].mean() > values[:4, 0].mean()  # more click weight, more clicks


def test_the_end_needs_a_time_zone() -> None:
    assert WorldConfig().end == datetime(2026, 1, 22, tzinfo=UTC)
    with pytest.raises(ValueError, match="time zone"):
        WorldConfig(end=datetime(2026, 1, 22))
