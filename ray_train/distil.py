"""A fitted network → a cheaper one that makes the same choices: knowledge distillation.

The served network has to answer for every grid action within the ranker's time. The paper's network pays
for a Transformer once and for its backbone once per action; a student pays for a few pooled queries and
for one backbone (:class:`triton_models.network_config.NetworkConfig`, ``pooling`` and ``grid``). It learns
from the teacher's Q on logged states, all actions at once (Hinton et al., *Distilling the Knowledge in a
Neural Network*, 2015, with regression targets): no reward, so no noise, and no row that does not count.

What decides is how actions differ from state to state, which is small beside the level of Q and beside
what the actions do for everybody. So level and effect are each fitted on the scale on which the teacher
varies over states, with ``l_m(s) = mean_a Q_m(s, a)`` and ``e_m(s, a) = Q_m(s, a) - l_m(s)``:

    L(s) = Σ_m (l_m - l'_m)² / Var_s[l_m]  +  Σ_m mean_a (e_m - e'_m)² / mean_a Var_s[e_m(·, a)]

Nothing in it chases the teacher's choices themselves. A loss that did (the teacher's expected regret of the
student's soft choice) agreed with the teacher more often and was worth less in the simulated feed: near
the maximum a fitted network differs from action to action mostly by its own noise.

Shape legend: n rows, B batch, A actions, M objectives, P scalarizations.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ray_train.distil_settings import DistilSettings
from ray_train.epochs import Progress
from ray_train.estimators import FloatArray
from ray_train.ingest import Arrays
from ray_train.objective import learning_rate_factor
from triton_models.errors import ConfigurationError
from triton_models.network import ValueNetwork, greedy_actions
from triton_models.network_config import NetworkConfig
from triton_models.surface import Surface
from triton_models.tensors import state_specs

LARGEST_TARGETS = 2**31
"""Bytes of the teacher's answers that are kept in memory."""

PASS_CELLS = 1 << 17
"""Rows x actions of one forward pass."""

SMALLEST_VARIANCE = 1e-12
SMALLEST_PART = 1e-3
"""Of an objective's variance over states, the least that level and effect are each scaled by."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Taught:
    """States on a device, and the teacher's Q for every action."""

    state: dict[str, Tensor]
    q_nAM: Tensor

    def __len__(self) -> int:
        return len(self.q_nAM)

    def rows(self, index: Tensor | slice) -> Taught:
        """Some of the rows."""
        return Taught({name: value[index] for name, value in self.state.items()}, self.q_nAM[index])


def teach(surface: Surface, teacher: ValueNetwork, arrays: Arrays, device: torch.device) -> Taught:
    """Ask the teacher for every action of every state.

    Raises:
        ConfigurationError: the answers do not fit in memory.
    """
    count = len(arrays["action"])
    size = count * surface.num_actions * len(surface.objectives) * 4
    if size > LARGEST_TARGETS:
        raise ConfigurationError(
            f"the teacher's answers for {count} rows and {surface.num_actions} actions take "
            f"{size / 2**30:.1f} GiB, more than {LARGEST_TARGETS / 2**30:.0f}; use fewer --rows"
        )
    state = {}
    for spec in state_specs(surface):
        value = torch.from_numpy(np.ascontiguousarray(arrays[spec.name])).to(device)
        state[spec.name] = value if value.is_floating_point() else value.long()
    # Cloned, because what inference mode made cannot take part in a training step.
    return Taught(state, all_action_values(teacher.to(device).eval(), state).clone())


def all_action_values(network: ValueNetwork, state: dict[str, Tensor]) -> Tensor:
    """Q of every action of every state, [n, A, M], in passes of a bounded size."""
    step = max(1, PASS_CELLS // len(network.action_grid_AW))
    with torch.inference_mode():
        parts = [
            network.action_values({name: value[start : start + step] for name, value in state.items()})
            for start in range(0, len(state["user_embedding"]), step)
        ]
        return torch.cat(parts)


@dataclass(frozen=True)
class Scales:
    """How much the teacher varies over states, per objective: its level, and the effect of its actions."""

    level_M: Tensor
    effect_M: Tensor

    @classmethod
    def of(cls, q_nAM: Tensor) -> Scales:
        """Of the teacher's answers."""
        level_nM = q_nAM.mean(dim=1)
        level_M = level_nM.var(dim=0)
        effect_M = (q_nAM - level_nM[:, None, :]).var(dim=0).mean(dim=0)
        # What hardly varies must not become all that counts.
        least_M = ((level_M + effect_M) * SMALLEST_PART).clamp(min=SMALLEST_VARIANCE)
        return cls(torch.maximum(level_M, least_M), torch.maximum(effect_M, least_M))

    def losses(self, q_BAM: Tensor, target_BAM: Tensor) -> Tensor:
        """The loss of every row, [B]; see the module."""
        error_BAM = q_BAM - target_BAM
        level_BM = error_BAM.mean(dim=1)
        effect_BM = (error_BAM - level_BM[:, None, :]).square().mean(dim=1)
        return (level_BM.square() / self.level_M + effect_BM / self.effect_M).sum(dim=1)


def distil(
    surface: Surface,
    config: NetworkConfig,
    taught: Taught,
    holdout: Taught,
    settings: DistilSettings,
    say: Say,
) -> tuple[ValueNetwork, Progress]:
    """Fit a student to a teacher's answers.

    Args:
        surface: the control surface of both.
        config: the student's parts and sizes.
        taught: the rows to learn from; the last share of them, shuffled, chooses the epoch.
        holdout: later rows, for the curve only.
        settings: how.
        say: told one line an epoch.

    Returns:
        The student of the best epoch in evaluation mode on the CPU, and the history.

    Raises:
        RunError: the loss became NaN or infinite.
    """
    torch.manual_seed(settings.seed)
    device = taught.q_nAM.device
    student = ValueNetwork(surface, config).to(device)
    student.start_at(torch.logit(taught.q_nAM.mean(dim=0), eps=1e-6))
    scales = Scales.of(taught.q_nAM)
    rng = np.random.default_rng(settings.seed)
    order = torch.from_numpy(rng.permutation(len(taught))).to(device)
    kept_back = max(1, int(len(taught) * settings.selection_share))
    learning, selection = order[kept_back:], taught.rows(order[:kept_back])
    batch = min(settings.batch_size, len(learning))
    steps = len(learning) // batch * settings.epochs
    optimizer = torch.optim.AdamW(
        student.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    progress = Progress(constant_loss=2.0 * len(surface.objectives))
    for epoch in range(1, settings.epochs + 1):
        began, total = time.monotonic(), 0.0
        student.train()
        for index in _batches(learning, batch, rng):
            for group in optimizer.param_groups:
                factor = learning_rate_factor(progress.step, steps, settings.warmup_share)
                group["lr"] = settings.learning_rate * factor
            part = taught.rows(index)
            loss = scales.losses(_all_actions(student, part.state), part.q_nAM).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(student.parameters(), settings.gradient_clip)
            optimizer.step()
            total += float(loss.detach())
            progress.step += 1
        student.eval()
        record = {
            "epoch": float(epoch),
            "train_loss": total / (len(learning) // batch),
            "selection_loss": mean_loss(student, selection, scales),
            "holdout_loss": mean_loss(student, holdout, scales),
            "rows": float(len(learning) // batch * batch),
            "seconds": time.monotonic() - began,
        }
        progress.keep(record, student.state_dict())
        best = " (best)" if progress.best_epoch == epoch else ""
        left = {name: _share(record[f"{name}_loss"], surface) for name in ("train", "selection", "holdout")}
        say(
            f"epoch {epoch:>3}/{settings.epochs}  not explained of the teacher: training {left['train']}, "
            f"selection {left['selection']}{best}, hold-out {left['holdout']}"
        )
    progress.require_converged()
    student.load_state_dict(progress.best)
    return student.cpu().eval(), progress


def _share(loss: float, surface: Surface) -> str:
    """The loss as the share of the teacher's variance that is left."""
    return f"{loss / (2 * len(surface.objectives)):.3%}"


def _batches(learning: Tensor, batch: int, rng: np.random.Generator) -> Iterator[Tensor]:
    shuffled = learning[torch.from_numpy(rng.permutation(len(learning))).to(learning.device)]
    for start in range(0, len(learning) // batch * batch, batch):
        yield shuffled[start : start + batch]


def _all_actions(student: ValueNetwork, state: dict[str, Tensor]) -> Tensor:
    """Q of every action with gradients, BatchNorm in training mode, [B, A, M]."""
    return torch.sigmoid(student.head.all_actions(student.encoder(state)))


def mean_loss(student: ValueNetwork, taught: Taught, scales: Scales) -> float:
    """Mean loss over rows, in evaluation mode."""
    with torch.inference_mode():
        losses = scales.losses(all_action_values(student, taught.state), taught.q_nAM)
        return float(losses.double().mean())


# ------------------------------------------------------------------------------------------- sameness


@dataclass(frozen=True, kw_only=True)
class Sameness:
    """How far a student's policies are the teacher's, on given states; one entry per scalarization."""

    agreement_P: FloatArray
    """Share of states with the same action."""
    gain_P: FloatArray
    """What the teacher expects from choosing per state instead of once for all:
    ``mean_s max_a u(s, a) - max_a mean_s u(s, a)``, with ``u = Σ_m λ_m Q_m``."""
    kept_P: FloatArray
    """Share of that gain which the teacher expects from the student's choices; 1 where there is none."""
    unexplained_M: FloatArray
    """Share of the variance over states of the teacher's action effects that the student leaves."""
    regret_P: FloatArray
    """``mean_s [u(s, a*) - u(s, a')] / mean_s u(s, a*)``: the teacher's expected relative loss."""


def compare_policies(taught: Taught, student: ValueNetwork, scalarization_PM: FloatArray) -> Sameness:
    """The student's choices in the teacher's eyes."""
    q_nAM = taught.q_nAM.double()
    student = copy.deepcopy(student).to(q_nAM.device)
    other_nAM = all_action_values(student, taught.state)
    scalarization = torch.as_tensor(scalarization_PM, dtype=torch.float32, device=q_nAM.device)
    chosen_nP = greedy_actions(other_nAM, scalarization)
    best_nP = greedy_actions(taught.q_nAM, scalarization)
    columns: list[tuple[float, float, float, float]] = []
    for p in range(len(scalarization_PM)):
        u_nA = q_nAM @ torch.as_tensor(scalarization_PM[p], dtype=torch.float64, device=q_nAM.device)
        best = float(u_nA.gather(1, best_nP[:, p, None]).mean())
        mine = float(u_nA.gather(1, chosen_nP[:, p, None]).mean())
        static = float(u_nA.mean(dim=0).max())
        gain = best - static
        kept = (mine - static) / gain if gain > 1e-9 else 1.0 if math.isclose(mine, best) else 0.0
        agreement = float((chosen_nP[:, p] == best_nP[:, p]).double().mean())
        columns.append((agreement, gain, kept, (best - mine) / best))
    agreement_P, gain_P, kept_P, regret_P = np.array(columns).T
    return Sameness(
        agreement_P=agreement_P,
        gain_P=gain_P,
        kept_P=kept_P,
        regret_P=regret_P,
        unexplained_M=_unexplained_effects(q_nAM, other_nAM.double()),
    )


def _unexplained_effects(q_nAM: Tensor, other_nAM: Tensor) -> FloatArray:
    """What differs from state to state between actions is all that a choice can use; nothing is floored."""
    effect_nAM = q_nAM - q_nAM.mean(dim=1, keepdim=True)
    error_nAM = effect_nAM - (other_nAM - other_nAM.mean(dim=1, keepdim=True))
    varies_M = effect_nAM.var(dim=0).mean(dim=0)
    left_M = error_nAM.square().mean(dim=(0, 1))
    share_M = torch.where(varies_M > SMALLEST_VARIANCE, left_M / varies_M, torch.zeros_like(left_M))
    return np.asarray(share_M.cpu().numpy(), dtype=np.float64)
