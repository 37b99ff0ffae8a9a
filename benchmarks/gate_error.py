"""How often the gate is wrong: many verdicts on networks whose worth is known.

Networks are fitted on logs of one world, drawn from different requests; each is judged on several hold-outs
of its own. The truth is the expected reward on later requests, for the gate's own scalarizations, in per
cent of production's value: against the truth's best static vector, which no log knows.

* a *wrong pass*: the gate says ``better``, the network is truly below the best static vector;
* a *right pass*: it says ``better``, and the network is truly above it.

Verdicts on one network share its mistakes, so intervals of the shares resample networks.

Shape legend: P scalarizations, n requests.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.feed.truth import Truth
from benchmarks.feed.world import World
from benchmarks.learning.worlds import TRAFFIC, load_world, rows_after, truth_of
from ray_train.gate import action_values, judge, middle_scalarizations, slices
from ray_train.in_process import fit_arrays
from ray_train.ingest import Arrays
from ray_train.learners import LEARNERS
from ray_train.shrinkage import shrink_to_data
from triton_models.network import ValueNetwork
from triton_models.runs import RunVerdict

TRUTH_REQUESTS = 4000
SELECTION_SHARE = 0.1
RESAMPLES = 4000


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is repeated."""

    feed: str
    learner: str
    rows: int
    """Of the training log."""
    holdout: int
    networks: int
    holdouts: int
    """Per network."""
    seed: int
    """Of the world."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One network and what the gate said about it."""

    network: int
    gain: float
    """True gain over the best static vector, as a share of production's value; mean over λ."""
    verdicts: tuple[RunVerdict, ...]


def judge_networks(
    plan: Plan, folder: Path, *, progress: Callable[[Judged], None] | None = None
) -> list[Judged]:
    """Fit and judge all networks of a plan; the truth of a world is kept in ``folder``."""
    world = load_world(plan.feed, plan.seed)
    requests, truth = truth_of(plan.feed, plan.seed, TRUTH_REQUESTS, folder / "truth")
    judged = []
    for number in range(plan.networks):
        # A fresh stretch of requests for every network, all of them before the truth's.
        first = number * (TRAFFIC // plan.networks)
        network, newest = _fit(world, plan, number, rows_after(world, first, plan.rows))
        verdicts = [
            judge(
                world.surface,
                network,
                earlier=newest,
                holdout=rows_after(world, first + plan.rows + k * plan.holdout, plan.holdout),
                log_rows=plan.rows + plan.holdout,
            )
            for k in range(plan.holdouts)
        ]
        gain = true_gain(world, network, requests, truth)
        judged.append(Judged(network=number, gain=gain, verdicts=tuple(verdicts)))
        if progress is not None:
            progress(judged[-1])
    return judged


def true_gain(world: World, network: ValueNetwork, requests: Arrays, truth: Truth) -> float:
    """Of the network's policy over the truth's best static vector."""
    scalarization_PM = middle_scalarizations(truth.objectives)
    # `slices` cuts by the logged action, which these requests do not have.
    states = slices({**requests, "action": np.zeros(len(requests["user_embedding"]), dtype=np.int16)})
    q_nAM = np.concatenate([action_values(world.surface, network, part) for part in states])
    chosen_nP = (q_nAM @ scalarization_PM.T).argmax(axis=1)
    m, gains = truth.objectives, []
    for p, lam in enumerate(scalarization_PM):
        static = float(truth.static[truth.best_static(lam), :m] @ lam)
        value = float(truth.policy(chosen_nP[:, p])[:m] @ lam)
        gains.append((value - static) / float(truth.production[:m] @ lam))
    return float(np.mean(gains))


def _fit(world: World, plan: Plan, number: int, log: Arrays) -> tuple[ValueNetwork, Arrays]:
    cut = int(plan.rows * (1.0 - SELECTION_SHARE))
    rows, newest = (
        {name: array[part] for name, array in log.items()} for part in (slice(cut), slice(cut, None))
    )
    learner = LEARNERS[plan.learner]
    settings = learner.fit_settings(seed=1000 * plan.seed + number)
    network = fit_arrays(world.surface, learner.network, settings, rows, newest)
    shrink_to_data(world.surface, network, newest)
    return network, newest


def summary(judged: list[Judged]) -> dict[str, Any]:
    """Shares of verdicts, with 95 % intervals that resample networks."""
    above_K = np.array([one.gain > 0 for one in judged])
    passed_K = [np.array([verdict.passed for verdict in one.verdicts]) for one in judged]
    counts_K2 = np.array(
        [(float((p & ~a).sum()), float((p & a).sum())) for p, a in zip(passed_K, above_K, strict=True)]
    )
    size_K = np.array([len(p) for p in passed_K], dtype=np.float64)
    draws = np.random.default_rng(0).integers(len(judged), size=(RESAMPLES, len(judged)))
    shares_B2 = counts_K2[draws].sum(axis=1) / size_K[draws].sum(axis=1)[:, None]
    low, high = np.quantile(shares_B2, [0.025, 0.975], axis=0)
    share = counts_K2.sum(axis=0) / size_K.sum()
    verdicts = [verdict for one in judged for verdict in one.verdicts]
    levels: dict[str, int] = {}
    for verdict in verdicts:
        levels[verdict.level] = levels.get(verdict.level, 0) + 1
    held = [
        verdict.versus_static.low <= one.gain <= verdict.versus_static.high
        for one in judged
        for verdict in one.verdicts
    ]
    return {
        "verdicts": len(verdicts),
        "networks": len(judged),
        "truly_above": int(above_K.sum()),
        "true_gain_mean": float(np.mean([one.gain for one in judged])),
        "levels": levels,
        "wrong_passes": int(counts_K2[:, 0].sum()),
        "wrong_pass_share": [float(share[0]), float(low[0]), float(high[0])],
        "wrong_pass_share_at_most": at_most(int(counts_K2[:, 0].sum()), len(verdicts)),
        "right_passes": int(counts_K2[:, 1].sum()),
        "right_pass_share": [float(share[1]), float(low[1]), float(high[1])],
        "interval_covers": float(np.mean(held)),
        "more_rows": sorted(v.more_rows for v in verdicts if v.more_rows is not None),
    }


def at_most(count: int, trials: int, confidence: float = 0.95) -> float:
    """Upper end of the exact one-sided binomial interval (Clopper & Pearson 1934)."""
    from math import comb

    def tail(p: float) -> float:
        return sum(comb(trials, k) * p**k * (1.0 - p) ** (trials - k) for k in range(count + 1))

    low, high = count / trials, 1.0
    for _ in range(60):
        middle = (low + high) / 2.0
        low, high = (middle, high) if tail(middle) > 1.0 - confidence else (low, middle)
    return high
