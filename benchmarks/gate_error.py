"""How often the gate is wrong: many verdicts on networks whose worth is known.

As in :mod:`benchmarks.estimator_error.pool`, a pool of requests with exact rewards of every action is the
population. Small networks are fitted on logs of other requests, each on its own; every one is judged on
several hold-outs drawn from the pool. The truth is the mean over the pool, for the gate's own scalarizations,
in per cent of production's value: against the pool's best static vector, which no log knows.

* a *wrong pass*: the gate says ``better``, the network is truly below the best static vector;
* a *right pass*: it says ``better``, and the network is truly above it.

Verdicts on one network share its mistakes, so intervals of the shares resample networks.

Shape legend: n requests of the pool, N rows of a hold-out, A actions, M objectives, P scalarizations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.estimator_error.pool import CHUNK_REQUESTS, Pool, fit_network
from benchmarks.feed.world import World
from ray_train.estimators import FloatArray
from ray_train.estimators_features import state_digest
from ray_train.gate import judge, middle_scalarizations
from ray_train.ingest import Arrays
from triton_models.network import ValueNetwork
from triton_models.runs import RunVerdict
from triton_models.surface import Surface
from triton_models.tensors import state_specs

EARLIER_SHARE = 0.1
"""Rows of the training window that help to choose the static vector, as a share of the training log."""
RESAMPLES = 4000


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is repeated."""

    requests: int
    """Of the pool."""
    rows: int
    """Of every training log."""
    holdout: int
    networks: int
    holdouts: int
    """Per network."""
    seed: int


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One network and what the gate said about it."""

    network: int
    gain: float
    """True gain over the best static vector, as a share of production's value; mean over λ."""
    verdicts: tuple[RunVerdict, ...]


class Remembered(ValueNetwork):
    """A network whose answers to the pool's requests are a table; a state is the request's number."""

    def __init__(self, q_nAM: npt.NDArray[np.float32]) -> None:
        torch.nn.Module.__init__(self)
        self._q_nAM = torch.from_numpy(q_nAM)

    def action_values(self, state: dict[str, torch.Tensor]) -> torch.Tensor:  # type: ignore[override]
        """Rows of the table."""
        return self._q_nAM[state["user_embedding"][:, 0].long()]


def judge_networks(
    world: World, plan: Plan, *, progress: Callable[[Judged], None] | None = None
) -> list[Judged]:
    """Fit and judge all networks of a plan."""
    pool, digest_nX = _population(world, plan.requests)
    judged = []
    for number in range(plan.networks):
        first = plan.requests + number * plan.rows
        network = fit_network(world, first, plan.rows, seed=1000 * plan.seed + number)
        parts = np.split(digest_nX, range(CHUNK_REQUESTS, len(digest_nX), CHUNK_REQUESTS))
        q_nAM = np.concatenate([network.action_values(part) for part in parts])
        verdicts = []
        for k in range(plan.holdouts):
            rng = np.random.default_rng([plan.seed, number, k])
            earlier = _logged(world.surface, pool, rng, max(1000, round(EARLIER_SHARE * plan.rows)))
            holdout = _logged(world.surface, pool, rng, plan.holdout)
            rows = plan.rows + plan.holdout
            verdicts.append(
                judge(world.surface, Remembered(q_nAM), earlier=earlier, holdout=holdout, log_rows=rows)
            )
        judged.append(Judged(network=number, gain=true_gain(pool, q_nAM), verdicts=tuple(verdicts)))
        if progress is not None:
            progress(judged[-1])
    return judged


def true_gain(pool: Pool, q_nAM: npt.NDArray[np.float32]) -> float:
    """Of the greedy policy of Q over the pool's best static vector."""
    gains = []
    for lam in middle_scalarizations(q_nAM.shape[2]):
        chosen_n = (q_nAM @ lam).argmax(axis=1)
        value_nA = pool.mean_nAM @ lam
        value = value_nA[np.arange(len(chosen_n)), chosen_n].mean(dtype=np.float64)
        static = value_nA.mean(axis=0, dtype=np.float64).max()
        gains.append((value - static) / float(pool.production_M @ lam))
    return float(np.mean(gains))


def _population(world: World, requests: int) -> tuple[Pool, npt.NDArray[np.float32]]:
    """The pool without policies, sorted by user, and what networks see of its requests."""
    objectives = len(world.surface.objectives)
    means, users, digests, served = [], [], [], np.zeros(objectives)
    for first in range(0, requests, CHUNK_REQUESTS):
        batch = world.requests(first, min(CHUNK_REQUESTS, requests - first))
        means.append(world.expected_rewards(batch)[:, :, :objectives].astype(np.float32))
        production = world.expected_rewards(batch, weights=world.surface.production)
        served += production[:, :objectives].sum(axis=0).reshape(-1)
        users.append(batch.user)
        digests.append(state_digest(world.surface, batch.state_tensors(world.surface)))
    user_n = np.concatenate(users)
    order = np.argsort(user_n, kind="stable")
    pool = Pool(
        mean_nAM=np.concatenate(means)[order],
        production_M=served / requests,
        user_n=user_n[order],
        # The only thing that is known of a row is which request of the pool it is.
        feature_nF=np.arange(requests, dtype=np.float32)[:, None],
        chosen_nP=np.zeros((requests, 1), dtype=np.int16),
        scalarization_PM=np.ones((1, objectives)),
    )
    return pool, np.concatenate(digests)[order]


def _logged(surface: Surface, pool: Pool, rng: np.random.Generator, rows: int) -> Arrays:
    """A log of the pool under uniform weights, encoded; states are request numbers."""
    size = surface.num_actions
    uniform_A: FloatArray = np.full(size, 1.0 / size)
    logged, _ = pool.logged(rng, rows, uniform_A)
    arrays = {
        spec.name: np.zeros((len(logged), *spec.shape), dtype=np.float32) for spec in state_specs(surface)
    }
    if logged.feature_NF is not None:
        arrays["user_embedding"][:, 0] = logged.feature_NF[:, 0]
    return {
        **arrays,
        "action": logged.action_N,
        "propensity": logged.propensity_N.astype(np.float32),
        "rewards": logged.outcome_NR,
        "user": logged.user_N,
    }


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
