"""What is known after each epoch; part of every checkpoint, and what the driver gets in the end."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from triton_models.errors import RunError


@dataclass(kw_only=True)
class Progress:
    """Epochs so far and the best weights among them."""

    epoch: int = 0
    """Epochs done."""
    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    best_loss: float = math.inf
    best_epoch: int = 0
    best: dict[str, Tensor] = field(default_factory=dict)
    """Weights of the best epoch."""
    constant_loss: float = math.nan
    """Selection loss of always answering the base rates."""
    diverged: bool = False

    def keep(self, record: dict[str, float], weights: Mapping[str, Tensor]) -> None:
        """Note an epoch, and its weights if it is the best so far."""
        self.epoch += 1
        self.history.append(record)
        self.diverged = not math.isfinite(record["train_loss"])
        if record["selection_loss"] < self.best_loss:
            self.best_loss, self.best_epoch = record["selection_loss"], self.epoch
            self.best = {name: tensor.detach().cpu().clone() for name, tensor in weights.items()}

    def require_converged(self) -> None:
        """Refuse a state that is no model.

        Raises:
            RunError: the loss became NaN or infinite.
        """
        if self.diverged or not self.best:
            raise RunError(
                f"training diverged in epoch {self.epoch}: the loss is not finite; "
                "use a smaller --learning-rate"
            )


def serialize(state: Any) -> bytes:
    """Tensors and plain data as bytes that ``torch.load(weights_only=True)`` reads."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()
