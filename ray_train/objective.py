"""What training minimises, and how fast: pure functions.

Shape legend: E members, B batch, M objectives.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ray_train.settings import FitSettings
from triton_models.committee import CommitteeHead
from triton_models.network import ValueNetwork


def row_losses(logits_BM: Tensor, rewards_BM: Tensor, loss: str) -> Tensor:
    """Loss of every row, [B]: Eq. 8, or the cross-entropy, summed over the objectives."""
    if loss == "bce":
        return functional.binary_cross_entropy_with_logits(logits_BM, rewards_BM, reduction="none").sum(dim=1)
    return (torch.sigmoid(logits_BM) - rewards_BM).square().sum(dim=1)


def batch_loss(
    logits_EBM: Tensor, rewards_BM: Tensor, user_B: Tensor, loss: str, *, jackknife: bool = False
) -> Tensor:
    """Σ_e of each member's mean loss over the rows of the users that it sees.

    In a jackknife of E > 1 members, member e does not see users with ``user mod E = e``
    (:mod:`triton_models.committee`). A member that sees no row of a batch adds nothing.
    """
    members = len(logits_EBM)
    rewards = rewards_BM.repeat(members, 1)
    loss_EB = row_losses(logits_EBM.flatten(0, 1), rewards, loss).reshape(members, -1)
    if members == 1 or not jackknife:
        return loss_EB.mean(dim=1).sum()
    seen_EB = user_B % members != torch.arange(members, device=user_B.device).unsqueeze(1)
    return ((loss_EB * seen_EB).sum(dim=1) / seen_EB.sum(dim=1).clamp(min=1)).sum()


def weight_decay_of(settings: FitSettings, rows: int) -> float:
    """AdamW's decay for so many training rows over all workers.

    Decay is taken at every step: weights forget what was seen more than ``1 / (decay · rate)`` steps ago,
    however many steps there are, so that a constant decay holds a long log back as much as a short one.
    As the inverse of the rows, what is remembered is a constant share of all epochs (Wang & Aitchison,
    arXiv 2405.13698), and decay stays one prior against ever more rows. Chosen by measurement: with 1,000,000
    rows 0.00 to 0.06 more captured on four worlds, with 350,000 nothing (``benchmarks/RESULTS.md``).
    """
    if settings.weight_decay_rows is None:
        return settings.weight_decay
    return settings.weight_decay * min(1.0, settings.weight_decay_rows / max(1, rows))


def optimizer_for(network: ValueNetwork, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW; a committee's biases and static contrasts are not decayed, or it would forget base rates."""
    head: nn.Module = network.head
    spared = {f"head.{name}" for name in head.undecayed()} if isinstance(head, CommitteeHead) else set()
    named = list(network.named_parameters())
    groups: list[dict[str, Any]] = [{"params": [value for name, value in named if name not in spared]}]
    if spared:
        groups.append({"params": [value for name, value in named if name in spared], "weight_decay": 0.0})
    return torch.optim.AdamW(groups, learning_rate, weight_decay=weight_decay)


def learning_rate_factor(step: int, steps: int, warmup_share: float) -> float:
    """Linear warm-up to 1, then half a cosine to 0."""
    warmup = max(1.0, steps * warmup_share)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = min(1.0, (step - warmup) / max(1.0, steps - warmup))
    return 0.5 * (1.0 + math.cos(math.pi * done))
