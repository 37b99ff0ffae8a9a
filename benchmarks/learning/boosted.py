"""LightGBM as Q model: one gradient-boosted model of ``E[r_m | s, a]`` per objective.

Features are the state's plain ones and the warped weights; cross-entropy, early-stopped on the newest rows.
Options are the better of two sets tried on seeds 1-3 of ``homefeed.yaml`` (100,000 rows, the milder
behaviour): captured share -0.42; with 63 leaves of 200 rows, all features and no penalty -0.72.

Prediction tiles a few requests over the grid at a time, so memory does not grow with the number of requests.

Shape legend: n rows, B batch, A actions, M objectives, P scalarizations, D features, W controlled weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.learning.features import (
    Features,
    FloatArray,
    action_coordinates,
    greedy,
    library,
    split,
    state_features,
)
from benchmarks.learning.tasks import Outcome, Task

TREES = 400
PATIENCE = 20
TILED_REQUESTS = 256
OPTIONS: dict[str, Any] = {
    "objective": "binary",
    "learning_rate": 0.1,
    "num_leaves": 31,
    "min_data_in_leaf": 1000,
    "feature_fraction": 0.5,
    "lambda_l2": 10.0,
    "num_threads": 1,
    "verbose": -1,
}


def boosted(task: Task) -> Outcome:
    """See the module."""
    surface, parts = task.surface, split(task.log)
    grid_AW = action_coordinates(surface)
    inputs = [np.hstack([state_features(surface, part), grid_AW[part["action"]]]) for part in parts]
    models = [
        _fitted(inputs, [part["rewards"][:, m] for part in parts], task.seed)
        for m in range(len(surface.objectives))
    ]
    values = _values(models, state_features(surface, task.requests), grid_AW)
    return Outcome(chosen_nP=greedy(values, task.scalarization_PM))


def _fitted(inputs: list[Features], rewards: list[npt.NDArray[Any]], seed: int) -> Any:
    gbm = library("lightgbm")
    train, valid = (gbm.Dataset(x, reward) for x, reward in zip(inputs, rewards, strict=True))
    stopping = [gbm.early_stopping(PATIENCE, verbose=False)]
    return gbm.train({**OPTIONS, "seed": seed}, train, TREES, valid_sets=[valid], callbacks=stopping)


def _values(models: list[Any], state_nD: Features, grid_AW: Features) -> Iterator[FloatArray]:
    for start in range(0, len(state_nD), TILED_REQUESTS):
        state_BD = state_nD[start : start + TILED_REQUESTS]
        tiled = np.hstack([np.repeat(state_BD, len(grid_AW), axis=0), np.tile(grid_AW, (len(state_BD), 1))])
        q = np.stack([np.asarray(model.predict(tiled, num_threads=1)) for model in models], axis=1)
        yield q.reshape(len(state_BD), len(grid_AW), -1)
