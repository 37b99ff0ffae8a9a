"""Cases that our estimators and the Open Bandit Pipeline's are both given; plain NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np

ROWS, ACTIONS = 400, 6
SWITCH, SHRINKAGE = 7.0, 9.0
CASES = (
    "uniform, deterministic",
    "propensity per row, deterministic",
    "propensity per row, mixture",
    "propensity per action, deterministic",
    "propensity per action, mixture",
)
CELLS = np.array([0, 0, 1, 1, 1, 2])
"""Cells of the actions, for MIPS."""


def case(name: str) -> dict[str, Any]:
    """Logged actions, rewards, propensities, a policy [N, A] and any q̂ [N, A]."""
    rng = np.random.default_rng(CASES.index(name))
    if name.startswith("uniform"):
        logging_NA = np.full((ROWS, ACTIONS), 1.0 / ACTIONS)
    else:
        logging_NA = rng.dirichlet(np.full(ACTIONS, 2.0), size=ROWS) * 0.9 + 0.1 / ACTIONS
    if "per action" in name:
        logging_NA = np.broadcast_to(logging_NA[0], (ROWS, ACTIONS))
    action_N = (rng.random((ROWS, 1)) > logging_NA.cumsum(axis=1)).sum(axis=1).clip(0, ACTIONS - 1)
    reward_N = (rng.random(ROWS) < 0.2 + 0.1 * action_N).astype(np.float64)
    chosen_N = rng.integers(ACTIONS, size=ROWS)
    mixture_A = rng.dirichlet(np.ones(ACTIONS))
    mixed = name.endswith("mixture")
    return {
        "action": action_N,
        "reward": reward_N,
        "logging": logging_NA,
        # The logging policy's distribution inside the cells, where all rows have the same.
        "inside": None
        if "per row" in name
        else logging_NA[0] / np.bincount(CELLS, weights=logging_NA[0])[CELLS],
        "propensity": logging_NA[np.arange(ROWS), action_N],
        "chosen": None if mixed else chosen_N,
        "mixture": mixture_A if mixed else None,
        "policy": np.broadcast_to(mixture_A, (ROWS, ACTIONS)) if mixed else np.eye(ACTIONS)[chosen_N],
        "q_hat": rng.random((ROWS, ACTIONS)),
    }
