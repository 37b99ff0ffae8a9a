"""A pool of requests of the simulated feed, with the exact reward of every action: logs can be drawn from it.

The pool is the population: the truth of a policy is the mean over its requests, exactly. A repetition draws
users with replacement and takes all their requests (so that rows of a user hang together as they do in a
log), then an action for each from the logging policy, then each outcome as a coin with the feed's own
probability. Estimators see what a log would show.

Policies are greedy for a small network that was fitted on other logged requests of the same world
(:mod:`benchmarks.estimator_error.policy_network`). Its Q also is what the run's network is to a real sweep:
part of the features of the rows.

Shape legend: n requests of the pool, N rows of a repetition, A actions, M objectives, P policies.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from benchmarks.estimator_error.policy_network import PolicyNetwork, fit_policy_network
from benchmarks.feed.world import World
from ray_train.estimators import FloatArray, LoggedRows
from ray_train.estimators_basis import polynomial_basis
from ray_train.estimators_features import row_features, state_digest

CHUNK_REQUESTS = 512


@dataclass(frozen=True, kw_only=True)
class Pool:
    """The population."""

    mean_nAM: npt.NDArray[np.float32]
    production_M: FloatArray
    """Value of the production weights themselves, not of a mixture."""
    user_n: npt.NDArray[np.int64]
    """Sorted."""
    feature_nF: npt.NDArray[np.float32]
    chosen_nP: npt.NDArray[np.int16]
    scalarization_PM: FloatArray

    @property
    def truth_PM(self) -> FloatArray:
        """Lifts of the policies against production, exactly."""
        rows = np.arange(len(self.user_n))
        value = [self.mean_nAM[rows, chosen].mean(axis=0, dtype=np.float64) for chosen in self.chosen_nP.T]
        return np.asarray(np.array(value) / self.production_M - 1.0)

    def logged(
        self, rng: np.random.Generator, rows: int, logging_A: FloatArray
    ) -> tuple[LoggedRows, npt.NDArray[np.int16]]:
        """About ``rows`` logged rows, sorted by user, and the policies' choices on them [N, P]."""
        start_u = np.flatnonzero(np.diff(self.user_n, prepend=-1))
        size_u = np.diff(np.append(start_u, len(self.user_n)))
        drawn = rng.integers(0, len(start_u), max(1, round(rows / size_u.mean())))
        user_N = np.repeat(np.arange(len(drawn), dtype=np.int32), size_u[drawn])
        first = np.repeat(np.cumsum(size_u[drawn]) - size_u[drawn], size_u[drawn])
        index_N = np.repeat(start_u[drawn], size_u[drawn]) + np.arange(len(user_N)) - first
        action_N = rng.choice(len(logging_A), size=len(user_N), p=logging_A)
        chance = self.mean_nAM[index_N, action_N]
        logged = LoggedRows(
            user_N=user_N,
            action_N=action_N.astype(np.int16),
            propensity_N=logging_A[action_N],
            outcome_NR=(rng.random(chance.shape) < chance).astype(np.float32),
            feature_NF=self.feature_nF[index_N],
        )
        return logged, self.chosen_nP[index_N]


def make_pool(
    world: World,
    *,
    requests: int,
    training_rows: int,
    alphas: FloatArray,
    progress: Callable[[int], None] | None = None,
) -> Pool:
    """Draw the population, fit the policies, value every action.

    Requests 0 .. requests-1 are the population, the next ``training_rows`` train the network.
    """
    surface, network = world.surface, fit_network(world, requests, training_rows)
    objectives = len(surface.objectives)
    basis = polynomial_basis(surface)
    means, users, features, served, chosen = [], [], [], [], []
    scalarization_PM = np.stack([1.0 - alphas, alphas], axis=1)
    for first in range(0, requests, CHUNK_REQUESTS):
        batch = world.requests(first, min(CHUNK_REQUESTS, requests - first))
        means.append(world.expected_rewards(batch)[:, :, :objectives].astype(np.float32))
        production = world.expected_rewards(batch, weights=surface.production)
        served.append(production[:, :objectives].sum(axis=0))
        users.append(batch.user)
        state = batch.state_tensors(surface)
        q_nAM = network.action_values(state_digest(surface, state))
        coefficient_nX = basis.coefficients(q_nAM).reshape(len(batch), -1)
        features.append(row_features(surface, coefficient_nX, state))
        chosen.append(np.einsum("nam,pm->npa", q_nAM, scalarization_PM).argmax(axis=2))
        if progress is not None:
            progress(len(batch))
    user_n = np.concatenate(users)
    order = np.argsort(user_n, kind="stable")
    return Pool(
        mean_nAM=np.concatenate(means)[order],
        production_M=np.sum(served, axis=0) / requests,
        user_n=user_n[order],
        feature_nF=np.concatenate(features)[order],
        chosen_nP=np.concatenate(chosen)[order].astype(np.int16),
        scalarization_PM=scalarization_PM,
    )


def fit_network(world: World, first: int, rows: int, *, seed: int | None = None) -> PolicyNetwork:
    """On logged requests that are not in the pool: number ``first`` and up; the world's seed by default."""
    digests, actions, rewards = [], [], []
    events = world.event_columns(world.surface.objectives)
    for start in range(first, first + rows, CHUNK_REQUESTS):
        batch = world.requests(start, min(CHUNK_REQUESTS, first + rows - start))
        counts, _ = world.sample(batch)
        digests.append(state_digest(world.surface, batch.state_tensors(world.surface)))
        actions.append(world.logged_actions(batch))
        rewards.append((counts[:, events] > 0).astype(np.float32))
    return fit_policy_network(
        np.concatenate(digests),
        np.concatenate(actions),
        np.concatenate(rewards),
        world.surface.normalized_actions,
        seed=world.config.seed if seed is None else seed,
    )
