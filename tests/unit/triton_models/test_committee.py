"""The committee's parts: features by hand, folding, shrinkage."""

from __future__ import annotations

import pytest
import torch

from tests.support.surfaces import small_surface
from triton_models.committee import CommitteeHead
from triton_models.export import parity_cases
from triton_models.network import ValueNetwork
from triton_models.network_config import NetworkConfig
from triton_models.plain_encoder import PlainEncoder

SURFACE = small_surface()
CONFIG = NetworkConfig(
    encoder="plain", action_head="committee", members=3, state_width=4, backbone_width=8, backbone_blocks=2
)


def states(rows: int = 20) -> dict[str, torch.Tensor]:
    cases = parity_cases(SURFACE, random_cases=rows, seed=1)
    return {name: torch.from_numpy(value) for name, value in cases.items() if name != "scalarization"}


@pytest.fixture
def network() -> ValueNetwork:
    """Parameters and statistics that are not trivial."""
    torch.manual_seed(0)
    made = ValueNetwork(SURFACE, CONFIG)
    head = made.head
    assert isinstance(head, CommitteeHead)
    with torch.no_grad():
        for value in made.parameters():
            value.normal_(0.0, 0.3)
        assert head.norm.running_mean is not None
        assert head.norm.running_var is not None
        head.norm.running_mean.normal_()
        head.norm.running_var.uniform_(0.5, 2.0)
        head.average_AM.normal_()
        head.personal_M.uniform_(0.2, 0.9)
    return made.eval()


def test_history_is_added_up_by_age() -> None:
    encoder, state = PlainEncoder(SURFACE), {name: value[:1].clone() for name, value in states().items()}
    spec = SURFACE.state.history
    assert spec is not None
    state["history_action"][:] = 0
    state["history_action"][0, :3] = torch.tensor([1, 2, 1])
    state["history_age_s"][0, :3] = torch.tensor([10.0, 3600.0, 3599.0])
    features = encoder(state)[0]
    bands = features[-3 * (spec.embedding + len(spec.actions)) :].reshape(3, -1)
    entry = state["history_embedding"][0]
    # The session holds entries 0 and 2, both of type 1; one hour old belongs to the day.
    torch.testing.assert_close(bands[0, : spec.embedding], entry[0] + entry[2])
    assert bands[0, spec.embedding :].tolist()[:2] == [2.0, 0.0]
    torch.testing.assert_close(bands[1, : spec.embedding], entry[1])
    assert bands[1, spec.embedding :].tolist()[:2] == [0.0, 1.0]
    assert not bands[2].any()


def test_all_actions_are_the_actions_one_by_one(network: ValueNetwork) -> None:
    state = states()
    with torch.no_grad():
        q_BAM = network.action_values(state)
        for action in range(SURFACE.num_actions):
            one = network(state, network.action_grid_AW[action].expand(len(q_BAM), -1))
            torch.testing.assert_close(q_BAM[:, action], one, rtol=0, atol=1e-6)


def test_gamma_zero_is_the_static_contrast_for_everybody(network: ValueNetwork) -> None:
    head = network.head
    assert isinstance(head, CommitteeHead)
    with torch.no_grad():
        head.personal_M.zero_()
        z_BAM = head.for_all_actions()(network.encoder(states())).double()
    contrast_BAM = z_BAM - z_BAM.mean(dim=1, keepdim=True)
    expected_AM = head.average_AM - head.average_AM.mean(dim=0)
    torch.testing.assert_close(contrast_BAM.float(), expected_AM.expand_as(contrast_BAM), rtol=0, atol=1e-4)


def test_parts_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(ValueError, match="needs"):
        NetworkConfig(encoder="plain")
    with pytest.raises(ValueError, match="needs"):
        NetworkConfig(action_head="committee")
