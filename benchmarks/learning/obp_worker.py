"""Policy learners of the Open Bandit Pipeline; run by an interpreter that has ``sb-obp``, never imported.

    python obp_worker.py LEARNER TASK.npz CHOSEN.npz

:mod:`benchmarks.learning.pipeline` says how to make that interpreter, and writes the task: state features
[n, D] and [q, D], logged actions [n], rewards [n, M], propensities [n], scalarizations [P, M], A, seed.

* ``obp-ipw``: ``IPWLearner``, ``argmax_π Σ_i r_i 1{π(s_i) = a_i} / p_i`` as weighted classification of the
  logged action (Dudík et al., Statistical Science 2014), multinomial logistic regression.
* ``obp-nn``: ``NNPolicyLearner``, a softmax network that climbs the gradient of the doubly robust estimate of
  its own value; its Q model is another network with one output per action.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch
from obp.policy import IPWLearner, NNPolicyLearner
from sklearn.linear_model import LogisticRegression

INVERSE_PENALTY = 1e-5
LOGISTIC_STEPS = 50
HIDDEN = (64,)
BATCH = 1024
LEARNING_RATE = 1e-3
EPOCHS = 5
NEVER = 10**9
"""Both loops of obp 0.5.10 count a batch whose loss *fell* as "not improving": keep them from stopping."""


def ipw(task: dict[str, Any], _seed: int) -> Any:
    """A multinomial logistic regression of the logged action, weighted by reward over propensity."""
    classifier = LogisticRegression(C=INVERSE_PENALTY, max_iter=LOGISTIC_STEPS)
    return IPWLearner(n_actions=int(task["actions"]), base_classifier=classifier)


def network(task: dict[str, Any], seed: int) -> Any:
    """A small policy network, with a small network as its Q model."""
    shared = {
        "hidden_layer_size": HIDDEN,
        "batch_size": BATCH,
        "learning_rate_init": LEARNING_RATE,
        "max_iter": EPOCHS,
        "n_iter_no_change": NEVER,
        "random_state": seed,
    }
    return NNPolicyLearner(
        n_actions=int(task["actions"]),
        dim_context=task["state"].shape[1],
        off_policy_objective="dr",
        q_func_estimator_hyperparams=dict(shared),
        **shared,
    )


LEARNERS = {"obp-ipw": ipw, "obp-nn": network}


def main() -> None:
    """See the module."""
    name, given, out = sys.argv[1:]
    torch.set_num_threads(1)
    with np.load(given) as file:
        task = dict(file)
    chosen = []
    for lam in task["scalarizations"]:
        learner = LEARNERS[name](task, int(task["seed"]))
        learner.fit(
            context=task["state"],
            action=task["action"],
            reward=task["rewards"] @ lam,
            pscore=task["propensity"],
        )
        chosen.append(learner.predict(task["asked"])[:, :, 0].argmax(axis=1))
    np.savez(out, chosen=np.stack(chosen, axis=1))


if __name__ == "__main__":
    main()
