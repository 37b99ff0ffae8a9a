"""Vowpal Wabbit: contextual bandits on the log.

``--cb_type mtr`` (Bietti, Agarwal & Langford, JMLR 2021, Section 2.2) regresses the cost of the logged action
on its features with importance ``1 / (A p)``, and takes the action of the lowest predicted cost. Two ways to
describe an action:

* ``--cb A``: every action has its own linear model of the state; nothing is shared over the grid. One bandit
  for each scalarization, costs ``-Σ_m λ_m r_m``.
* ``--cb_adf`` (what ``--cb_explore_adf`` explores around; nothing is explored here): the weights themselves
  are features, each combined with each of the state (``-q sa``), so that neighbours on the grid learn from
  each other. One bandit for each objective, costs ``-r_m``; predicted costs are scalarized, as our Q is.

With ``--cb_adf``, mtr learns from the logged action's line alone. So only that one is written, with
``p' = A p``: the same importance, hence the same model, as the tests show, at a tenth of the time.

Of the options tried on seeds 1-3 of ``homefeed.yaml`` (100,000 rows, the milder behaviour; one bandit per
α in both forms then), these were best: defaults follow noise (captured share at α 0.5: -3.3, -1.8), a small
step or ``--coin`` less (-0.95, -0.6).

Shape legend: n rows, A actions, M objectives, P scalarizations, D features, W controlled weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations_with_replacement
from typing import Any

import numpy as np

from benchmarks.learning.features import Features, FloatArray, action_coordinates, library, standardized
from benchmarks.learning.tasks import Outcome, Task

HASH_BITS = 18
ACTION_DEGREE = 2
"""Powers and products of the weights up to it are features of an action."""
SEPARATE_OPTIONS = "--cb_type mtr --learning_rate 0.01"
SHARED_OPTIONS = "--cb_adf --cb_type mtr -q sa --coin"


def separate_actions(task: Task) -> Outcome:
    """``--cb A --cb_type mtr``."""
    lines, asked = _formatted(task)
    options = f"--cb {task.surface.num_actions} {SEPARATE_OPTIONS}"
    labels = (task.log["action"] + 1).tolist(), task.log["propensity"].tolist()
    chosen = []
    for cost in costs(task, task.scalarization_PM):
        bandit = workspace(options, task.seed)
        for action, chance, value, text in zip(*labels, cost, lines, strict=True):
            bandit.learn(f"{action}:{value:.4g}:{chance:.6g} {text}")
        chosen.append([int(bandit.predict(text)) - 1 for text in asked])
        bandit.finish()
    return Outcome(chosen_nP=np.array(chosen, dtype=np.intp).T)


def shared_actions(task: Task) -> Outcome:
    """``--cb_adf --cb_type mtr -q sa``, the weights as features."""
    lines, asked = _formatted(task)
    actions = action_lines(action_coordinates(task.surface))
    labels = task.log["action"].tolist(), (task.log["propensity"] * task.surface.num_actions).tolist()
    costs_nAM = []
    for cost in costs(task, np.eye(len(task.surface.objectives))):
        bandit = workspace(SHARED_OPTIONS, task.seed)
        for action, chance, value, text in zip(*labels, cost, lines, strict=True):
            bandit.learn([f"shared {text}", f"0:{value:.4g}:{chance:.6g} {actions[action]}"])
        costs_nAM.append([bandit.predict([f"shared {text}", *actions]) for text in asked])
        bandit.finish()
    scalarized_nAP = np.stack(costs_nAM, axis=2) @ task.scalarization_PM.T
    return Outcome(chosen_nP=scalarized_nAP.argmin(axis=1))


def costs(task: Task, scalarization_PM: FloatArray) -> Iterable[list[float]]:
    """``-Σ_m λ_m r_m`` of every row, one list per scalarization."""
    for lam in scalarization_PM:
        yield (-(task.log["rewards"].astype(np.float64) @ lam)).tolist()


def _formatted(task: Task) -> tuple[list[str], list[str]]:
    log_nD, requests_nD = standardized(task.surface, task.log, task.requests)
    return state_lines(log_nD), state_lines(requests_nD)


def state_lines(features_nD: Features) -> list[str]:
    """States in Vowpal Wabbit's text format, namespace ``s``; zeros are left out."""
    names = [str(i) for i in range(features_nD.shape[1])]
    return [
        "|s " + " ".join(f"{name}:{value:.3g}" for name, value in zip(names, row, strict=True) if value)
        for row in features_nD.tolist()
    ]


def action_lines(coordinates_AW: Features) -> list[str]:
    """Actions in the text format: namespace ``a`` is combined with the state, ``c`` names the action."""
    return [
        f"|a {' '.join(f'{name}:{value:.4g}' for name, value in _powers(row))} |c {number}"
        for number, row in enumerate(coordinates_AW.tolist())
    ]


def _powers(row: Sequence[float]) -> list[tuple[str, float]]:
    found = []
    for degree in range(1, ACTION_DEGREE + 1):
        for chosen in combinations_with_replacement(range(len(row)), degree):
            found.append(("_".join(map(str, chosen)), float(np.prod([row[i] for i in chosen]))))
    return found


def workspace(options: str, seed: int) -> Any:
    """A learner of the library."""
    pyvw = library("vowpalwabbit.pyvw")
    return pyvw.Workspace(f"{options} -b {HASH_BITS} --random_seed {seed} --quiet")
