"""The committee in worlds with a known answer: what is there is found, what is not is not claimed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ray_train.gate import judge
from ray_train.in_process import fit_arrays, state_of
from ray_train.ingest import Arrays, encode_training
from ray_train.learners import COMMITTEE
from ray_train.shrinkage import shrink_to_data
from tests.support.logs import make_log, true_values
from tests.support.surfaces import small_surface
from triton_models.committee import CommitteeHead
from triton_models.network import ValueNetwork
from triton_models.runs import RunVerdict

SURFACE = small_surface()
NETWORK = COMMITTEE.network.model_copy(update={"members": 4, "backbone_width": 24, "state_width": 12})
SETTINGS = COMMITTEE.fit_settings(epochs=6, batch_size=256, seed=5)


def encoded(rows: int, effect: float, seed: int) -> Arrays:
    return encode_training(SURFACE, make_log(SURFACE, rows, effect=effect, seed=seed))


def learned(effect: float, *, jackknife: bool = False) -> tuple[ValueNetwork, RunVerdict]:
    rows, selection, later = (encoded(n, effect, seed) for n, seed in ((8000, 1), (4000, 2), (8000, 3)))
    settings = SETTINGS.model_copy(update={"jackknife": jackknife})
    network = fit_arrays(SURFACE, NETWORK, settings, rows, selection)
    shrink_to_data(SURFACE, network, selection)
    return network, judge(SURFACE, network, earlier=selection, holdout=later, log_rows=20_000)


@pytest.fixture(scope="module")
def planted() -> tuple[ValueNetwork, RunVerdict]:
    return learned(0.15)


@pytest.fixture(scope="module")
def null() -> tuple[ValueNetwork, RunVerdict]:
    return learned(0.0, jackknife=True)


def head_of(network: ValueNetwork) -> CommitteeHead:
    assert isinstance(network.head, CommitteeHead)
    return network.head


def test_a_planted_effect_is_recovered_and_passes(planted: tuple[ValueNetwork, RunVerdict]) -> None:
    network, verdict = planted
    rows = encoded(2000, 0.15, 9)
    with torch.inference_mode():
        q_BAM = network.action_values(state_of(SURFACE, rows)).numpy()
    taste = rows["user_embedding"][:, 0]
    # Every weight at its maximum for taste +1, at its minimum for -1.
    best = q_BAM.sum(axis=2).argmax(axis=1)
    assert (best == np.where(taste > 0, SURFACE.num_actions - 1, 0)).mean() > 0.9
    assert np.abs(q_BAM - true_values(SURFACE, taste, 0.15)).mean() < 0.05
    assert (head_of(network).personal_M > 0.7).all()
    assert verdict.level == "better"


def test_a_world_without_anything_to_gain_shrinks_to_the_static_vector(
    null: tuple[ValueNetwork, RunVerdict],
) -> None:
    network, verdict = null
    # All the committee has learned about differences between requests is noise, and it is told so.
    assert (head_of(network).personal_M < 0.35).all()
    assert not verdict.passed
    assert verdict.versus_static.low <= 0.0 <= verdict.versus_static.high


def test_the_spread_of_the_members_is_the_size_of_their_error(null: tuple[ValueNetwork, RunVerdict]) -> None:
    head = head_of(null[0])
    with torch.no_grad():
        shrunk = head.personal_M.clone()
        head.personal_M.fill_(1.0)
        state_BD = null[0].encoder(state_of(SURFACE, encoded(500, 0.0, 11)))
        error_BAM = head.contrast_error(state_BD)
        z_BAM = head.all_actions(state_BD)
        head.personal_M.copy_(shrunk)
    contrast_BAM = z_BAM - z_BAM.mean(dim=1, keepdim=True)  # the true contrast is zero everywhere
    scaled = float((contrast_BAM / error_BAM).square().mean().sqrt())
    assert 0.3 < scaled < 3.0
