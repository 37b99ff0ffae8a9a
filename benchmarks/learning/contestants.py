"""The learners that are compared: each makes the actions to choose from a log.

Every learner of the product takes part under its own name. ``static`` is what a person without a value
network would do with the same log: fit the mean reward of every grid action and give everybody the best one.
Other people's learners: :mod:`benchmarks.learning.boosted` (LightGBM), :mod:`benchmarks.learning.vowpal`,
:mod:`benchmarks.learning.pipeline` (Open Bandit Pipeline). Their settings were chosen where the product's
were, on ``homefeed.yaml``, seeds 1-3.

Shape legend: n requests, A actions, P scalarizations.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from benchmarks.learning.boosted import boosted
from benchmarks.learning.features import batches, greedy, split
from benchmarks.learning.pipeline import pipeline
from benchmarks.learning.tasks import Contestant, Outcome, Task
from benchmarks.learning.vowpal import separate_actions, shared_actions
from ray_train.gate import judge
from ray_train.in_process import fit_arrays, state_of
from ray_train.learners import LEARNERS
from ray_train.shrinkage import shrink_to_data
from triton_models.errors import BenchmarkError

SHRINKAGE_ROWS = 32_768
HOLDOUT_ROWS = 1 << 16


def network(name: str) -> Contestant:
    """A learner of the product, with its gate."""

    def run(task: Task) -> Outcome:
        learner = LEARNERS[name]
        rows, selection = split(task.log)
        settings = learner.fit_settings(seed=task.seed)
        fitted = fit_arrays(task.surface, learner.network, settings, rows, selection)
        newest = {key: array[:SHRINKAGE_ROWS] for key, array in selection.items()}
        shrink_to_data(task.surface, fitted, newest)
        with torch.inference_mode():
            answers = (
                fitted.action_values(state_of(task.surface, batch)).double().numpy()
                for batch in batches(task.requests)
            )
            chosen = greedy(answers, task.scalarization_PM)
        later = task.later()
        count = len(task.log["action"]) + len(later["action"])
        verdict = judge(task.surface, fitted, earlier=newest, holdout=later, log_rows=count)
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


CONTESTANTS: dict[str, Contestant] = {
    **{name: network(name) for name in LEARNERS},
    "static": static,
    "lightgbm": boosted,
    "vowpal-wabbit": separate_actions,
    "vowpal-wabbit-adf": shared_actions,
    "obp-ipw": pipeline("obp-ipw"),
    "obp-nn": pipeline("obp-nn"),
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
