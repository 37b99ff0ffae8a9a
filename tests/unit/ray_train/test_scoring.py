"""Scoring in micro-batches: how large, and that it makes no difference to the answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import benchmarks
from benchmarks.feed.config import WorldConfig
from benchmarks.feed.world import World
from ray_train import scoring
from ray_train.estimators_basis import polynomial_basis
from ray_train.learners import COMMITTEE, PAPER
from triton_models.network import ValueNetwork
from triton_models.surface import Surface, load_surface


@pytest.fixture(scope="module")
def homefeed() -> Surface:
    return load_surface(Path(benchmarks.__file__).parent / "surfaces" / "homefeed.yaml")


def test_every_member_of_a_committee_takes_room(homefeed: Surface) -> None:
    committee, single = (ValueNetwork(homefeed, learner.network) for learner in (COMMITTEE, PAPER))
    # 2^20 floats / 49 actions: 8 members of 64 activations each, or the paper's 128
    assert scoring.micro_batch_rows(homefeed, committee) == (1 << 20) // (49 * 8 * 64) == 41
    assert scoring.micro_batch_rows(homefeed, single) == (1 << 20) // (49 * 128) == 167


def test_answers_do_not_depend_on_the_micro_batch(homefeed: Surface, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(WorldConfig(seed=1, requests=500), homefeed)
    state = world.requests(0, 100).state_tensors(homefeed)
    torch.manual_seed(0)
    network = ValueNetwork(homefeed, COMMITTEE.network).eval()
    with torch.no_grad():  # an unfitted committee says the same of every action
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    scalarization = np.array([[0.8, 0.2], [0.5, 0.5]])
    basis, cpu = polynomial_basis(homefeed), torch.device("cpu")
    chosen, coefficients = scoring.score_states(homefeed, network, state, scalarization, cpu, basis)
    monkeypatch.setattr(scoring, "MICRO_BATCH_FLOATS", 1)  # one row at a time
    again, alone = scoring.score_states(homefeed, network, state, scalarization, cpu, basis)
    assert len(np.unique(chosen)) > 1 and (chosen == again).mean() > 0.98  # ties in the last bit may turn
    np.testing.assert_allclose(coefficients, alone, atol=1e-6)
