"""What training minimises, and how fast: pure functions.

**Counts.** What is valued is the clipped reward, ``P(X >= 1) = σ(z)`` of a count X (Eq. 3); its loss is what
epochs are chosen by, and the only one that is reported. But the log holds X itself. Were it Poisson,
``σ(z) = 1 - exp(-λ)`` would give it the rate ``λ = log(1 + exp z)``, and its continuation ratios (McCullagh,
*J. R. Stat. Soc. B* 42, 1980) would follow from z: with ``S_k(λ) = Σ_j λ^j k! / (k + j)!``, so that
``P(X >= k) = P(X = k) S_k(λ)``, ::

    logit P(X >= k + 1 | X >= k) = δ_k + β_k x_k,    x_k = log(λ S_{k+1}(λ) / (k + 1))

with δ_k = 0 and β_k = 1. A committee's loss adds, for ``1 <= k <`` :data:`MOST_COUNT`, ``count_weight``
times the cross-entropy of these. Two things keep it from harm where counts are not Poisson. δ_k and β_k
are profiled out (for each batch of a worker, member and objective): how many there are teaches only as far
as it follows the chance of at least one, and then which rows have more than others; a batch in which
nobody or everybody has more than k teaches nothing about k, a log of zeros and ones nothing at all. And
the weight is below one, as for any likelihood that is not quite believed (Bissiri, Holmes & Walker, *J. R.
Stat. Soc. B* 78, 2016).

Shape legend: E members, B batch, M objectives.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ray_train.settings import FitSettings
from triton_models.committee import HIGHEST, LOWEST, CommitteeHead
from triton_models.network import ValueNetwork

MOST_COUNT = 3
"""Larger counts say hardly more about a rate near one half, and are taken for it."""
SERIES_TERMS = 24
"""Of S_k: what is left out is below 1e-7 of it at the highest rate of a committee, e²."""
JOINT_STEPS, LEVEL_STEPS = 5, 3
"""Of Newton's method: for both parameters of a logistic regression, then for the level at the slope found."""
MOST_SLOPE = 2.0
"""Of β, where few rows would make it infinite; below 0, that more go with less chance, it is not believed."""
LONGEST_STEP = 2.0
LEAST_INFORMATION = 1e-6


def row_losses(logits_BM: Tensor, rewards_BM: Tensor, loss: str) -> Tensor:
    """Loss of every row, [B]: Eq. 8, or the cross-entropy, summed over the objectives."""
    if loss == "bce":
        return functional.binary_cross_entropy_with_logits(logits_BM, rewards_BM, reduction="none").sum(dim=1)
    return (torch.sigmoid(logits_BM) - rewards_BM).square().sum(dim=1)


def count_losses(logits_EBM: Tensor, counts_BM: Tensor, seen_EB: Tensor) -> Tensor:
    """Cross-entropy of the continuation ratios, summed over ratios and objectives, [E, B]: see the module.

    Args:
        logits_EBM: log-odds of at least one.
        counts_BM: raw counts.
        seen_EB: which rows a member learns from, bool; the others have no loss and move neither δ nor β.
    """
    losses_EBM = torch.zeros_like(logits_EBM)
    for k, x_EBM in enumerate(continuation_logits(logits_EBM), start=1):
        at_risk_EBM = seen_EB.unsqueeze(2) & (counts_BM >= k)
        more_EBM = at_risk_EBM & (counts_BM > k)
        some_E1M = more_EBM.any(dim=1, keepdim=True)
        not_all_E1M = (at_risk_EBM & ~more_EBM).any(dim=1, keepdim=True)
        # With one answer only, the best δ is infinite and explains it whatever z is.
        at_risk_EBM = (at_risk_EBM & some_E1M & not_all_E1M).to(x_EBM.dtype)
        target_EBM = more_EBM.to(x_EBM.dtype)
        delta_E1M, beta_E1M = _profiled(x_EBM.detach(), at_risk_EBM, target_EBM * at_risk_EBM)
        z_EBM = delta_E1M + beta_E1M * x_EBM
        entropy_EBM = functional.binary_cross_entropy_with_logits(z_EBM, target_EBM, reduction="none")
        losses_EBM = losses_EBM + at_risk_EBM * entropy_EBM
    return losses_EBM.sum(dim=2)


def continuation_logits(logits: Tensor) -> list[Tensor]:
    """Of a Poisson count with these log-odds of at least one, the log-odds of one more than k if there are k.

    For k = 1 to :data:`MOST_COUNT` - 1, each of the shape given; see the module.
    """
    rate = functional.softplus(logits).clamp(math.exp(LOWEST), math.exp(HIGHEST))
    found = []
    for k in range(1, MOST_COUNT):
        series = torch.ones_like(rate)
        for j in range(SERIES_TERMS, 0, -1):
            series = 1.0 + series * (rate / (k + 1 + j))
        found.append(torch.log(rate * series / (k + 1)))
    return found


def _profiled(x_EBM: Tensor, at_risk_EBM: Tensor, more_EBM: Tensor) -> tuple[Tensor, Tensor]:
    """The δ and ``β >= 0``, [E, 1, M], of the greatest likelihood of ``σ(δ + β x)`` over the rows at risk.

    There the derivatives by them are zero, or β is at a bound, so that none has to be followed through them.
    """
    rows_E1M, some_E1M = _total(at_risk_EBM), _total(more_EBM)
    mean_E1M = _total(x_EBM * at_risk_EBM) / rows_E1M.clamp(min=1.0)
    apart_EBM = x_EBM - mean_E1M
    level_E1M = torch.log(some_E1M.clamp(min=1.0) / (rows_E1M - some_E1M).clamp(min=1.0))
    beta_E1M = torch.ones_like(level_E1M)
    for step in range(JOINT_STEPS + LEVEL_STEPS):
        p_EBM = torch.sigmoid(level_E1M + beta_E1M * apart_EBM)
        residual_EBM = more_EBM - p_EBM * at_risk_EBM
        weight_EBM = p_EBM * (1.0 - p_EBM) * at_risk_EBM
        score_E1M, information_E1M = _total(residual_EBM), _total(weight_EBM)
        if step >= JOINT_STEPS:
            move_E1M = score_E1M / information_E1M.clamp(min=LEAST_INFORMATION)
        else:
            cross_E1M, square_E1M = _total(weight_EBM * apart_EBM), _total(weight_EBM * apart_EBM.square())
            slope_score_E1M = _total(residual_EBM * apart_EBM)
            scale_E1M = (information_E1M * square_E1M - cross_E1M.square()).clamp(min=LEAST_INFORMATION)
            move_E1M = (square_E1M * score_E1M - cross_E1M * slope_score_E1M) / scale_E1M
            turn_E1M = (information_E1M * slope_score_E1M - cross_E1M * score_E1M) / scale_E1M
            beta_E1M = (beta_E1M + turn_E1M).clamp(0.0, MOST_SLOPE)
        level_E1M = level_E1M + move_E1M.clamp(-LONGEST_STEP, LONGEST_STEP)
    return level_E1M - beta_E1M * mean_E1M, beta_E1M


def _total(rows_EBM: Tensor) -> Tensor:
    return rows_EBM.sum(dim=1, keepdim=True)


def batch_loss(
    logits_EBM: Tensor, rewards_BM: Tensor, counts_BM: Tensor, user_B: Tensor, settings: FitSettings
) -> tuple[Tensor, Tensor]:
    """What a step minimises, and what is reported of it.

    In a jackknife of E > 1 members, member e does not see users with ``user mod E = e``
    (:mod:`triton_models.committee`). A member that sees no row of a batch adds nothing.

    Returns:
        Σ_e of each member's mean loss over the rows of the users that it sees, and the members' mean of the
        same without what counts add (see the module), detached: comparable with :func:`row_losses`.
    """
    members, rows = logits_EBM.shape[:2]
    if members > 1 and settings.jackknife:
        seen_EB = user_B % members != torch.arange(members, device=user_B.device).unsqueeze(1)
    else:
        seen_EB = torch.ones(members, rows, dtype=torch.bool, device=logits_EBM.device)
    rewards = rewards_BM.repeat(members, 1)
    own_EB = row_losses(logits_EBM.flatten(0, 1), rewards, settings.loss).reshape(members, -1)
    loss_EB = own_EB
    if settings.loss == "bce" and settings.count_weight:
        loss_EB = own_EB + settings.count_weight * count_losses(logits_EBM, counts_BM, seen_EB)
    seen_E = seen_EB.sum(dim=1).clamp(min=1)
    loss, reported = (((one_EB * seen_EB).sum(dim=1) / seen_E).sum() for one_EB in (loss_EB, own_EB.detach()))
    return loss, reported / members


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
