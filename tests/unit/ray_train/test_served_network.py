"""Scoring beside live traffic: how much of the server is taken, and when the scorer steps back."""

from __future__ import annotations

import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ray_train.served_network import LARGEST_BACK_OFF, Pace, ServedNetwork
from triton_models.config_pbtxt import MODEL_SHA256
from triton_models.errors import UpstreamInvalidError, UpstreamUnavailableError


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
    assert busy == sorted(busy) and busy[-1] == pytest.approx(0.002 * (LARGEST_BACK_OFF / 0.5 - 1))
    idle = [pace.silence_after(0.002) for _ in range(60)]
    assert idle[-1] == pytest.approx(0.002)


def test_the_whole_server_is_given_back_as_well_when_others_come() -> None:
    pace = Pace(share=1.0)
    assert pace.silence_after(0.002) == 0.0
    assert pace.silence_after(0.010) == pytest.approx(0.002)


class FakeServer:
    """Serves one model file; unavailable for the first ``gone`` requests."""

    def __init__(self, gone: int = 0) -> None:
        self.gone, self.asked, self.sha256 = gone, [], "one"

    def served(self, model: str) -> SimpleNamespace:
        return SimpleNamespace(parameters={MODEL_SHA256: self.sha256})

    def infer(
        self, model: str, arrays: dict[str, np.ndarray], outputs: list[str], *, priority: int
    ) -> dict[str, np.ndarray]:
        if self.gone:
            self.gone -= 1
            raise UpstreamUnavailableError("gone")
        self.asked.append((len(arrays["scalarization"]), priority))
        return {"action_values": np.full((len(arrays["scalarization"]), 4, 2), 0.5, dtype=np.float32)}


def connected(server: FakeServer, silences: list[float]) -> ServedNetwork:
    network = ServedNetwork("fake:1", 2, batch_rows=4, sleep=silences.append)
    network._server, network._model_sha256, network.priority = server, "one", 2  # type: ignore[assignment]
    return network


def test_rows_go_in_small_requests_of_low_priority_with_silence_after_each() -> None:
    server, silences = FakeServer(), []
    values = connected(server, silences).action_values({"user_embedding": torch.zeros(10, 3)})
    assert values.shape == (10, 4, 2)
    assert server.asked == [(4, 2), (4, 2), (2, 2)]
    assert len(silences) == 3 and all(silence > 0 for silence in silences)


def test_a_server_that_is_replaced_is_waited_for_and_one_that_is_gone_is_not() -> None:
    server, silences = FakeServer(gone=3), []
    connected(server, silences).action_values({"user_embedding": torch.zeros(4, 3)})
    assert silences[:3] == [1.0, 1.0, 1.0]
    with pytest.raises(UpstreamUnavailableError):
        connected(FakeServer(gone=99), []).action_values({"user_embedding": torch.zeros(4, 3)})


def test_a_roll_out_in_the_middle_ends_the_sweep() -> None:
    server = FakeServer()
    network = connected(server, [])
    network.action_values({"user_embedding": torch.zeros(4, 3)})
    server.sha256 = "two"
    with pytest.raises(UpstreamInvalidError, match="serves another model than when the sweep began"):
        network.action_values({"user_embedding": torch.zeros(4, 3)})


def test_it_travels_without_its_connection() -> None:
    network = ServedNetwork("127.0.0.1:1", 2, batch_rows=4)
    network._server = object()  # type: ignore[assignment]
    arrived = pickle.loads(pickle.dumps(network))
    assert arrived._server is None and arrived.batch_rows == 4
