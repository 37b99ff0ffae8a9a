"""Feature groups in isolation: the same learner, the same rows, one group in and the others "unknown".

    captured = (V(policy) - V(best static)) / (V(best request-level) - V(best static))

in expected scalarized reward on requests after the log (:mod:`benchmarks.policy_value`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch

from benchmarks.feed.truth import Truth, find_truth
from benchmarks.paper.logged import fitted, logged_rows, make_world, only
from benchmarks.paper.parts import Part
from benchmarks.paper.settings import Group, PaperSettings
from benchmarks.policy_value import worth_of
from ray_train.ingest import Arrays
from ray_train.scoring import choose_actions

ALPHAS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
"""Those of ``benchmarks learning``."""
DRAWS = 16
"""Redraws of the candidates behind each true value."""


def ablation_part(settings: PaperSettings, seed: int, group: Group, say: Callable[[str], None]) -> Part:
    """What one group is worth by itself in one world."""
    rows, states, truth = _data(settings, seed)
    say(f"seed {seed}: {len(rows['action']):,} rows, {group} features in …")
    surface = make_world(settings, seed).surface
    network = fitted(surface, only(group, rows), learner=settings.learner, seed=seed)
    alpha_P = np.array(ALPHAS)
    scalarization_PM = np.stack([1.0 - alpha_P, alpha_P], axis=1)
    chosen_nP = choose_actions(surface, network, only(group, states), scalarization_PM, torch.device("cpu"))
    worth = worth_of(truth, [group], [chosen_nP], scalarization_PM)[0]
    gain_P = [truth.gain(lam) for lam in scalarization_PM]
    return {
        "seed": seed,
        "group": group,
        "rows": len(rows["action"]),
        "alphas": list(ALPHAS),
        "captured": worth.captured_P.tolist(),
        "gain": gain_P,
    }


@lru_cache(maxsize=1)
def _data(settings: PaperSettings, seed: int) -> tuple[Arrays, Arrays, Truth]:
    """Rows to learn from (the log's newest), later states, and their truth; groups of a world share them."""
    world = make_world(settings, seed)
    count = min(settings.ablation_requests, settings.requests)
    rows = logged_rows(world, settings.requests - count, count)
    later = world.requests(settings.requests, settings.truth_requests)
    truth = find_truth(world, settings.requests, settings.truth_requests, draws=DRAWS)
    return rows, later.state_tensors(world.surface), truth
