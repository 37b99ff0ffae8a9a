"""Fit a learner to arrays in this process: the losses and schedule of Ray Train, one worker, no files.

For benchmarks that fit many networks, and for tests. Product runs go through :mod:`ray_train.fit`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from ray_train.epochs import Progress
from ray_train.ingest import Arrays
from ray_train.objective import batch_loss, learning_rate_factor, optimizer_for, row_losses, weight_decay_of
from ray_train.settings import FitSettings
from ray_train.shards import shuffled_batches
from triton_models.network import ValueNetwork
from triton_models.network_config import NetworkConfig
from triton_models.surface import Surface
from triton_models.tensors import state_specs

EVALUATION_ROWS = 8192


def fit_arrays(
    surface: Surface, config: NetworkConfig, settings: FitSettings, rows: Arrays, selection: Arrays
) -> ValueNetwork:
    """Train on ``rows``, keep the epoch with the least loss on ``selection``; in evaluation mode.

    Raises:
        RunError: the loss became NaN or infinite.
    """
    torch.manual_seed(settings.seed)
    network = ValueNetwork(surface, config)
    rate_M = (selection["rewards"].sum(axis=0) + 0.5) / (len(selection["rewards"]) + 1.0)
    network.start_at(torch.logit(torch.from_numpy(rate_M).float()))
    decay = weight_decay_of(settings, len(rows["action"]))
    optimizer = optimizer_for(network, settings.learning_rate, decay)
    steps = max(1, len(rows["action"]) // settings.batch_size) * settings.epochs
    progress = Progress()
    for epoch in range(settings.epochs):
        network.train()
        losses = []
        rng = np.random.default_rng((settings.seed, epoch, 0))
        for batch in shuffled_batches([rows], settings.batch_size, rng, pool_rows=len(rows["action"])):
            factor = learning_rate_factor(progress.step, steps, settings.warmup_share)
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * factor
            action = network.action_grid_AW[torch.from_numpy(batch["action"]).long()]
            logits = network.member_logits(state_of(surface, batch), action)
            rewards, counts, user = (torch.from_numpy(batch[name]) for name in ("rewards", "counts", "user"))
            loss, reported = batch_loss(logits, rewards, counts, user, settings)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(network.parameters(), settings.gradient_clip)
            optimizer.step()
            progress.step += 1
            losses.append(float(reported))
        network.eval()
        record = {
            "train_loss": float(np.mean(losses)),
            "selection_loss": _loss(surface, network, selection, settings.loss),
        }
        progress.keep(record, network.state_dict())
    progress.require_converged()
    network.load_state_dict(progress.best)
    return network.eval()


def state_of(surface: Surface, rows: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:  # type: ignore[type-arg]
    """State tensors of encoded rows, whatever their compact types."""
    state = {
        spec.name: torch.from_numpy(np.ascontiguousarray(rows[spec.name])) for spec in state_specs(surface)
    }
    return {
        name: value.float() if value.is_floating_point() else value.long() for name, value in state.items()
    }


@torch.inference_mode()
def _loss(surface: Surface, network: ValueNetwork, rows: Arrays, loss: str) -> float:
    total = 0.0
    for start in range(0, len(rows["action"]), EVALUATION_ROWS):
        part = {name: array[start : start + EVALUATION_ROWS] for name, array in rows.items()}
        action = network.action_grid_AW[torch.from_numpy(part["action"]).long()]
        logits = network.logits(state_of(surface, part), action)
        total += float(row_losses(logits, torch.from_numpy(part["rewards"]), loss).sum())
    return total / len(rows["action"])
