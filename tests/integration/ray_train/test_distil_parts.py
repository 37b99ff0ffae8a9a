"""Distillation: what is minimised, what is compared, and that a student learns what its teacher says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ray_train.distil import (
    Scales,
    Taught,
    compare_policies,
    distil,
    teach,
)
from ray_train.distil_settings import DistilSettings, student_config
from ray_train.learners import LEARNERS
from tests.support.surfaces import small_surface
from triton_models.errors import ConfigurationError
from triton_models.network import ValueNetwork
from triton_models.network_config import NetworkConfig
from triton_models.surface import Surface
from triton_models.tensors import state_specs

SURFACE = small_surface()
CPU = torch.device("cpu")
LAMBDAS = np.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])


def states(surface: Surface, count: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    arrays: dict[str, np.ndarray] = {"action": np.zeros(count, np.int16)}
    for spec in state_specs(surface):
        shape = (count, *spec.shape)
        if spec.datatype == "INT64":
            arrays[spec.name] = rng.integers(0, 2, shape).astype(np.int16)
        else:
            arrays[spec.name] = rng.normal(size=shape).astype(np.float32)
    arrays["history_age_s"] = np.abs(arrays["history_age_s"]) * 1e4
    return arrays


class Planted(ValueNetwork):
    """A teacher whose answer is known: the best action depends on the sign of one number of the state."""

    def action_values(self, state: dict[str, torch.Tensor]) -> torch.Tensor:  # type: ignore[override]
        push_A = self.action_grid_AW.sum(dim=1) - 1.0
        taste_B = torch.tanh(2.0 * state["user_embedding"][:, 0])
        one_BA = 0.5 + 0.2 * taste_B[:, None] * push_A
        return torch.stack([one_BA, 1.0 - one_BA], dim=2)


def test_the_scales_make_a_constant_answer_cost_two_per_objective() -> None:
    rng = np.random.default_rng(1)
    level = rng.normal(size=(4000, 1, 2)) * [0.3, 0.02]
    effect = rng.normal(size=(4000, 9, 2)) * [0.03, 0.1]
    main = rng.normal(size=(1, 9, 2))  # for everybody: no part of the scale
    q = torch.from_numpy(level + effect - effect.mean(axis=1, keepdims=True) + main)
    scales = Scales.of(q)
    constant = q.mean(dim=0, keepdim=True).expand_as(q)
    assert float(scales.losses(constant, q).mean()) == pytest.approx(4.0, rel=1e-3)
    assert float(scales.losses(q, q).max()) == 0.0


def test_the_student_is_cheap_and_keeps_the_teachers_widths() -> None:
    config = student_config(NetworkConfig(user_width=48, history_layers=2), backbone_width=64)
    assert (config.history_encoder, config.action_head) == ("pooling", "grid")
    assert (config.user_width, config.backbone_width) == (48, 64)


def test_the_student_of_a_committee_sees_what_its_teacher_sees() -> None:
    config = student_config(LEARNERS["committee"].network, backbone_width=64)
    assert (config.encoder, config.action_head, config.backbone_width) == ("plain", "grid", 64)


def test_a_student_learns_what_its_teacher_says() -> None:
    teacher = Planted(SURFACE, NetworkConfig()).eval()
    taught = teach(SURFACE, teacher, states(SURFACE, 4000), CPU)
    later = teach(SURFACE, teacher, states(SURFACE, 1000, seed=5), CPU)
    config = student_config(NetworkConfig(), backbone_width=32)
    settings = DistilSettings(rows=4000, epochs=12, batch_size=128)
    lines: list[str] = []
    student, progress = distil(SURFACE, config, taught, later, settings, lines.append)
    assert len(lines) == settings.epochs
    assert progress.history[-1]["holdout_loss"] < 0.1 * progress.constant_loss
    same = compare_policies(later, student, LAMBDAS)
    assert (same.agreement_P[[0, 2]] > 0.9).all()
    assert (same.kept_P[[0, 2]] > 0.97).all()
    assert (same.gain_P[[0, 2]] > 0.05).all()
    # At equal weights both objectives cancel: every action is as good, and nothing can be lost.
    assert abs(same.regret_P[1]) < 1e-6


def test_a_network_is_the_same_as_itself_and_a_constant_one_keeps_nothing() -> None:
    teacher = Planted(SURFACE, NetworkConfig()).eval()
    later = teach(SURFACE, teacher, states(SURFACE, 500), CPU)
    itself = compare_policies(later, teacher, LAMBDAS)
    assert itself.agreement_P.tolist() == [1.0, 1.0, 1.0]
    assert itself.kept_P[[0, 2]].tolist() == [1.0, 1.0]
    constant = ValueNetwork(SURFACE, student_config(NetworkConfig())).eval()
    with torch.no_grad():
        for parameter in constant.head.parameters():
            parameter.zero_()
    lost = compare_policies(later, constant, LAMBDAS)
    assert (lost.kept_P[[0, 2]] < 0.2).all()
    assert lost.unexplained_M == pytest.approx([1.0, 1.0], abs=0.01)
    assert itself.unexplained_M.tolist() == [0.0, 0.0]
    # The teacher's expected gain, written out.
    u_nA = later.q_nAM[:, :, 0].double().numpy()
    assert lost.gain_P[0] == pytest.approx(u_nA.max(axis=1).mean() - u_nA.mean(axis=0).max(), abs=1e-9)


def test_too_many_answers_for_the_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray_train.distil.LARGEST_TARGETS", 1000)
    with pytest.raises(ConfigurationError, match="use fewer --rows"):
        teach(SURFACE, Planted(SURFACE, NetworkConfig()), states(SURFACE, 200), CPU)


def test_grid_head_interpolates_between_grid_points() -> None:
    network = ValueNetwork(SURFACE, student_config(NetworkConfig())).eval()
    taught = Taught({}, torch.zeros(0, 1, 1))
    assert len(taught) == 0
    arrays = states(SURFACE, 3)
    state = {
        s.name: torch.from_numpy(arrays[s.name].astype(np.int64 if s.datatype == "INT64" else np.float32))
        for s in state_specs(SURFACE)
    }
    grid = network.action_grid_AW
    with torch.inference_mode():
        encoded = network.encoder(state)
        on_grid = torch.stack([network.head(encoded, row.expand(3, -1)) for row in grid], dim=1)
        torch.testing.assert_close(on_grid, network.head.all_actions(encoded))
        middle = network.head(encoded, ((grid[0] + grid[1]) / 2).expand(3, -1))
    torch.testing.assert_close(middle, (on_grid[:, 0] + on_grid[:, 1]) / 2)
