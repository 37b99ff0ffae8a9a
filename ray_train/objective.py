"""What training minimises, and how fast: pure functions.

Shape legend: B batch, M objectives.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional


def row_losses(logits_BM: Tensor, rewards_BM: Tensor, loss: str) -> Tensor:
    """Loss of every row, [B]: Eq. 8, or the cross-entropy, summed over the objectives."""
    if loss == "bce":
        return functional.binary_cross_entropy_with_logits(logits_BM, rewards_BM, reduction="none").sum(dim=1)
    return (torch.sigmoid(logits_BM) - rewards_BM).square().sum(dim=1)


def learning_rate_factor(step: int, steps: int, warmup_share: float) -> float:
    """Linear warm-up to 1, then half a cosine to 0."""
    warmup = max(1.0, steps * warmup_share)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = min(1.0, (step - warmup) / max(1.0, steps - warmup))
    return 0.5 * (1.0 + math.cos(math.pi * done))
