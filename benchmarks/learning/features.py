"""What contestants share: splitting a log, plain features of states and actions, the best action of a Q.

Shape legend: n rows, B batch, A actions, M objectives, P scalarizations, D features, W controlled weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ray_train.in_process import state_of
from ray_train.ingest import Arrays
from triton_models.errors import BenchmarkError
from triton_models.members import warped
from triton_models.plain_encoder import PlainEncoder
from triton_models.surface import Surface

FloatArray = npt.NDArray[np.float64]
Features = npt.NDArray[np.float32]
Actions = npt.NDArray[np.intp]

SELECTION_SHARE = 0.1
SELECTION_ROWS = 65_536
BATCH = 1024


def split(log: Arrays) -> tuple[Arrays, Arrays]:
    """Rows to learn from, and the newest, which choose the epoch."""
    cut = int(len(log["action"]) * (1.0 - SELECTION_SHARE))
    return (
        {name: array[:cut] for name, array in log.items()},
        {name: array[cut : cut + SELECTION_ROWS] for name, array in log.items()},
    )


def batches(arrays: Arrays) -> Iterator[Arrays]:
    """The rows in order, :data:`BATCH` at a time."""
    for start in range(0, len(arrays["user_embedding"]), BATCH):
        yield {name: array[start : start + BATCH] for name, array in arrays.items()}


def greedy(values: Iterator[FloatArray], scalarization_PM: FloatArray) -> Actions:
    """Best actions [n, P] of batches of Q [B, A, M]."""
    return np.concatenate([(q_BAM @ scalarization_PM.T).argmax(axis=1) for q_BAM in values])


def state_features(surface: Surface, arrays: Arrays) -> Features:
    """The committee's own features of a state, [n, D]: what it sees, the others see."""
    encoder = PlainEncoder(surface)
    with torch.inference_mode():
        return np.concatenate([encoder(state_of(surface, batch)).numpy() for batch in batches(arrays)])


def standardized(surface: Surface, log: Arrays, requests: Arrays) -> tuple[Features, Features]:
    """State features of both, with mean 0 and deviation 1 over the log."""
    log_nD, requests_nD = state_features(surface, log), state_features(surface, requests)
    mean_D, deviation_D = log_nD.mean(axis=0), log_nD.std(axis=0) + 1e-6
    return (log_nD - mean_D) / deviation_D, (requests_nD - mean_D) / deviation_D


def action_coordinates(surface: Surface) -> Features:
    """The grid as the committee sees it, [A, W] in [-1, 1], finer where weights are small."""
    return np.asarray(warped(torch.from_numpy(surface.normalized_actions).float()).numpy())


def library(name: str) -> Any:
    """A package that only this benchmark needs.

    Raises:
        BenchmarkError: it is not installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise BenchmarkError(f"{name} is not installed; pip install 'prl-puts[learning]'") from error
