"""Frontiers without logs, and scored rows with a known answer."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ray_train.estimators import LoggedRows
from ray_train.sweep import ScoredRows
from tests.support.logs import true_values
from triton_models.frontier import RunReference, Window
from triton_models.surface import Surface


def run_reference(surface: Surface) -> RunReference:
    """A reference to no run."""
    return RunReference(run_id="test-run", surface_fingerprint=surface.fingerprint, code_version="test")


def window(rows: int = 1) -> Window:
    """A week."""
    return Window(
        start="2026-01-15T00:00:00+00:00",
        end="2026-01-22T00:00:00+00:00",
        split="holdout",
        rows=rows,
        logs="logs",
    )


def frontier_data(surface: Surface) -> dict[str, Any]:
    """Plain data of a frontier with two points, made without looking at any log."""

    def point(alpha: float, lift: float) -> dict[str, Any]:
        return {
            "scalarization": [1 - alpha, alpha],
            "cohort": None,
            "values": dict.fromkeys(surface.objectives, 0.5 * (1 + lift)),
            "lifts": dict.fromkeys(surface.objectives, lift),
            "intervals": {name: [lift - 0.01, lift + 0.01] for name in surface.objectives},
            "metrics": {
                name: {"value": 0.5, "lift": 0.0, "interval": [-0.01, 0.01]} for name in surface.metrics
            },
            "hits": 120,
            "effective_sample_size": 120.0,
            "mean_weights": dict(zip(surface.controlled_heads, surface.production.tolist(), strict=True)),
            "dominated": lift < 0,
            "extrapolated": False,
        }

    return {
        "version": 1,
        "surface": surface.to_dict(),
        "run": run_reference(surface).model_dump(),
        "window": window(1000).model_dump(),
        "estimator": {
            "name": "snips",
            "formula": "SNIPS",
            "interval": "percentile cluster bootstrap by user",
            "confidence": 0.95,
            "resamples": 1000,
            "seed": 0,
        },
        "production": {
            "valuation": "mixture",
            "note": "a mixture",
            "weights": dict(zip(surface.controlled_heads, surface.production.tolist(), strict=True)),
            "estimates": [
                {
                    "cohort": None,
                    "rows": 1000,
                    "values": dict.fromkeys(surface.objectives, 0.5),
                    "metrics": dict.fromkeys(surface.metrics, 0.5),
                    "hits": 400,
                    "effective_sample_size": 380.0,
                    "hypervolume": 0.0001,
                }
            ],
        },
        "points": [point(0.25, 0.02), point(0.75, -0.01)],
        "candidates": {
            "repin_leaning": {"point": 0, "reason": "largest lift of repin"},
            "knee": {"point": 0, "reason": "farthest from the chord"},
        },
    }


def planted_rows(
    surface: Surface,
    rows: int,
    points: int,
    *,
    effect: float = 0.2,
    seed: int = 0,
    users: int = 400,
    logging_A: npt.NDArray[np.float64] | None = None,
) -> ScoredRows:
    """Rows of the planted world of :mod:`tests.support.logs` and, at every point, its best policy.

    Users with taste +1 get the last action, those with -1 the first. In expectation over tastes every
    static policy earns 0.5 on every objective, and the best policy 0.5 + effect · (weights an objective has).
    """
    rng = np.random.default_rng(seed)
    user = np.sort(rng.integers(users, size=rows)).astype(np.int32)
    taste = np.where(user % 2 == 0, 1.0, -1.0)
    uniform = np.full(surface.num_actions, 1.0 / surface.num_actions)
    chance_A = uniform if logging_A is None else logging_A
    action = rng.choice(surface.num_actions, size=rows, p=chance_A)
    value = true_values(surface, taste, effect)[np.arange(rows), action]
    reward = (rng.random(value.shape) < value).astype(np.float32)
    metric = rng.random((rows, len(surface.metrics))).astype(np.float32)
    best = np.where(taste > 0, surface.num_actions - 1, 0).astype(np.int16)
    return ScoredRows(
        rows=LoggedRows(
            user_N=user,
            action_N=action.astype(np.int16),
            propensity_N=chance_A[action],
            outcome_NR=np.concatenate([reward, metric], axis=1),
        ),
        chosen_NP=np.repeat(best[:, None], points, axis=1),
        cohort_N=(user % max(1, len(surface.cohorts))).astype(np.int16),
        cohorts=surface.cohorts,
    )
