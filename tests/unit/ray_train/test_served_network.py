"""Scoring beside live traffic: how much of the server is taken, and when the scorer steps back."""

from __future__ import annotations

import pickle

import pytest

from ray_train.served_network import LARGEST_BACK_OFF, Pace, ServedNetwork


def test_on_an_idle_server_the_scorer_takes_its_share() -> None:
    pace = Pace(share=0.25)
    busy = silent = 0.0
    for _ in range(100):
        busy += 0.004
        silent += pace.silence_after(0.004)
    assert busy / (busy + silent) == pytest.approx(0.25)
    assert Pace(share=1.0).silence_after(0.004) == 0.0


def test_a_busy_server_makes_it_step_back_and_an_idle_one_return() -> None:
    pace = Pace(share=0.5)
    for _ in range(50):
        pace.silence_after(0.002)
    busy = [pace.silence_after(0.010) for _ in range(8)]
    assert busy == sorted(busy) and busy[-1] == pytest.approx(0.002 * LARGEST_BACK_OFF)
    idle = [pace.silence_after(0.002) for _ in range(60)]
    assert idle[-1] == pytest.approx(0.002)


def test_a_server_that_is_always_slower_becomes_the_usual_one() -> None:
    pace = Pace(share=0.5)
    for _ in range(50):
        pace.silence_after(0.002)
    for _ in range(400):
        last = pace.silence_after(0.010)
    assert last == pytest.approx(0.010)


def test_it_travels_without_its_connection() -> None:
    network = ServedNetwork("127.0.0.1:1", 2, batch_rows=4)
    network._server = object()  # type: ignore[assignment]
    arrived = pickle.loads(pickle.dumps(network))
    assert arrived._server is None and arrived.batch_rows == 4
