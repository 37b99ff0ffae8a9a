"""The learners that are compared: each makes Q of every action from a log, or the actions themselves.

``static`` is what a person without a value network would do with the same log: fit the mean reward of every
grid action and give everybody the best one. ``lightgbm`` is a gradient-boosted Q model per objective on the
plain features and the warped weights, ``vowpal-wabbit`` one contextual bandit per scalarization.

Shape legend: n requests, A actions, M objectives, P scalarizations, D features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ray_train.gate import judge
from ray_train.in_process import fit_arrays, state_of
from ray_train.ingest import Arrays
from ray_train.learners import LEARNERS
from ray_train.shrinkage import shrink_to_data
from triton_models.committee import warped
from triton_models.errors import BenchmarkError
from triton_models.plain_encoder import PlainEncoder
from triton_models.runs import RunVerdict
from triton_models.surface import Surface

FloatArray = npt.NDArray[np.float64]
Actions = npt.NDArray[np.intp]

SELECTION_SHARE = 0.1
SELECTION_ROWS = 65_536
SHRINKAGE_ROWS = 32_768
HOLDOUT_ROWS = 1 << 16
BATCH = 1024


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a contestant gets."""

    surface: Surface
    log: Arrays
    later: Arrays
    """A hold-out after the log, of half as many rows up to a cap; for the gate only."""
    requests: Arrays
    """States to choose for."""
    scalarization_PM: FloatArray
    seed: int


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What it chose: actions [n, P]."""

    chosen_nP: Actions
    verdict: RunVerdict | None = None


Contestant = Callable[[Task], Outcome]


def _split(log: Arrays) -> tuple[Arrays, Arrays]:
    """Rows to learn from, and the newest, which choose the epoch."""
    cut = int(len(log["action"]) * (1.0 - SELECTION_SHARE))
    return (
        {name: array[:cut] for name, array in log.items()},
        {name: array[cut : cut + SELECTION_ROWS] for name, array in log.items()},
    )


def _batches(arrays: Arrays) -> Iterator[Arrays]:
    for start in range(0, len(arrays["user_embedding"]), BATCH):
        yield {name: array[start : start + BATCH] for name, array in arrays.items()}


def _greedy(values: Iterator[FloatArray], scalarization_PM: FloatArray) -> Actions:
    """Best actions of batches of Q [B, A, M]."""
    return np.concatenate([(q_BAM @ scalarization_PM.T).argmax(axis=1) for q_BAM in values])


def network(name: str) -> Contestant:
    """A learner of the product, with its gate."""

    def run(task: Task) -> Outcome:
        learner = LEARNERS[name]
        rows, selection = _split(task.log)
        settings = learner.fit_settings(seed=task.seed)
        fitted = fit_arrays(task.surface, learner.network, settings, rows, selection)
        newest = {key: array[:SHRINKAGE_ROWS] for key, array in selection.items()}
        shrink_to_data(task.surface, fitted, newest)
        with torch.inference_mode():
            answers = (
                fitted.action_values(state_of(task.surface, batch)).double().numpy()
                for batch in _batches(task.requests)
            )
            chosen = _greedy(answers, task.scalarization_PM)
        count = len(task.log["action"]) + len(task.later["action"])
        verdict = judge(task.surface, fitted, earlier=newest, holdout=task.later, log_rows=count)
        return Outcome(chosen_nP=chosen, verdict=verdict)

    return run


def static(task: Task) -> Outcome:
    """The action with the highest mean reward in the log, for everybody."""
    action, count = task.log["action"], task.surface.num_actions
    rows = np.maximum(np.bincount(action, minlength=count), 1)
    rewards = task.log["rewards"].astype(np.float64) @ task.scalarization_PM.T
    mean_AP = np.stack(
        [np.bincount(action, weights=column, minlength=count) / rows for column in rewards.T], axis=1
    )
    requests = len(task.requests["user_embedding"])
    return Outcome(chosen_nP=np.broadcast_to(mean_AP.argmax(axis=0), (requests, mean_AP.shape[1])))


def lightgbm(task: Task) -> Outcome:
    """One gradient-boosted model of the reward per objective, early-stopped on the newest rows."""
    gbm = _library("lightgbm")
    rows, selection = _split(task.log)
    models = []
    for m in range(len(task.surface.objectives)):
        parts = [
            (np.hstack([_features(task.surface, part), _coordinates(task.surface, part["action"])]), part)
            for part in (rows, selection)
        ]
        train, valid = (gbm.Dataset(x, part["rewards"][:, m], free_raw_data=True) for x, part in parts)
        options: dict[str, Any] = {
            "objective": "binary",
            "learning_rate": 0.1,
            "num_leaves": 63,
            "min_data_in_leaf": 200,
            "num_threads": 1,
            "seed": task.seed,
            "verbose": -1,
        }
        stopping = [gbm.early_stopping(20, verbose=False)]
        models.append(gbm.train(options, train, 400, valid_sets=[valid], callbacks=stopping))
    actions = np.arange(task.surface.num_actions)

    def values() -> Iterator[FloatArray]:
        for batch in _batches(task.requests):
            state = _features(task.surface, batch)
            x = np.concatenate(
                [
                    np.repeat(state, len(actions), axis=0),
                    np.tile(_coordinates(task.surface, actions), (len(state), 1)),
                ],
                axis=1,
            )
            q = np.stack([np.asarray(model.predict(x, num_threads=1)) for model in models], axis=1)
            yield q.reshape(len(state), len(actions), -1)

    return Outcome(chosen_nP=_greedy(values(), task.scalarization_PM))


def vowpal_wabbit(task: Task) -> Outcome:
    """``--cb A --cb_type mtr`` per scalarization: one pass, state features, costs -Σ_m λ_m r_m."""
    pyvw = _library("vowpalwabbit.pyvw")
    state, requests = _features(task.surface, task.log), _features(task.surface, task.requests)
    mean, scale = state.mean(axis=0), state.std(axis=0) + 1e-6
    lines = _vw_lines((state - mean) / scale)
    asked = _vw_lines((requests - mean) / scale)
    chance = 1.0 / task.surface.num_actions
    chosen = []
    for lam in task.scalarization_PM:
        cost = -(task.log["rewards"].astype(np.float64) @ lam)
        options = f"--cb {task.surface.num_actions} --cb_type mtr -b 20 --random_seed {task.seed} --quiet"
        learner = pyvw.Workspace(options)
        for action, value, text in zip(task.log["action"].tolist(), cost.tolist(), lines, strict=True):
            learner.learn(f"{action + 1}:{value:.4f}:{chance:.6f} {text}")
        chosen.append([int(learner.predict(text)) - 1 for text in asked])
        learner.finish()
    return Outcome(chosen_nP=np.array(chosen, dtype=np.intp).T)


def _vw_lines(features: npt.NDArray[np.float32]) -> list[str]:
    names = [f"f{i}" for i in range(features.shape[1])]
    return [
        "|s " + " ".join(f"{name}:{value:.3g}" for name, value in zip(names, row, strict=True) if value)
        for row in features.tolist()
    ]


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise BenchmarkError(f"{name} is not installed; pip install 'prl-puts[learning]'") from error


def _features(surface: Surface, arrays: Arrays) -> npt.NDArray[np.float32]:
    encoder = PlainEncoder(surface)
    with torch.inference_mode():
        return np.concatenate([encoder(state_of(surface, batch)).numpy() for batch in _batches(arrays)])


def _coordinates(surface: Surface, action: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    grid = torch.from_numpy(surface.normalized_actions).float()
    return np.asarray(warped(grid).numpy()[action])


CONTESTANTS: dict[str, Contestant] = {
    "committee": network("committee"),
    "paper": network("paper"),
    "static": static,
    "lightgbm": lightgbm,
    "vowpal-wabbit": vowpal_wabbit,
}


def contestant(name: str) -> Contestant:
    """A contestant by name.

    Raises:
        BenchmarkError: there is none of that name.
    """
    if name not in CONTESTANTS:
        raise BenchmarkError(f"learner {name!r}: there are {', '.join(CONTESTANTS)}")
    return CONTESTANTS[name]


def holdout_rows(rows: int) -> int:
    """Rows of the hold-out beside a log of ``rows``: half as many, as 7 days are beside 14."""
    return min(math.ceil(rows / 2), HOLDOUT_ROWS)
