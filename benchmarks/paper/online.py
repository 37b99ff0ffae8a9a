"""Operating points on traffic after the log: A/B tests with sampled engagement, and the exact truth beside.

*A/B*: for every point half of the users, drawn by a hash of point and user, get its policy and the other
half production weights; what is compared is engagement drawn for the served slates. The tests run on the same
requests, one after the other so to speak, so each has the whole traffic.

*Truth*: the feed's own expectation of every served slate, for the policy and for production on the same
requests; its interval holds which users came, nothing else.

Shape legend: n requests, P policies (operating points, then static vectors), R outcomes, U users, A actions,
W controlled weights; the last axis of sums holds numerator and denominator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.feed.requests import RequestBatch
from benchmarks.feed.world import World
from benchmarks.paper.logged import SLICE, outcomes
from ray_train.estimators import FloatArray
from ray_train.intervals import DeltaMethod, relative_lifts
from ray_train.scoring import choose_actions
from triton_models.network import ValueNetwork


@dataclass(frozen=True, kw_only=True)
class UserSums:
    """What every user's requests added up to; users without a request have zeros."""

    requests_U: FloatArray
    cohort_U: npt.NDArray[np.intp]
    """Index into the feed's cohorts."""
    sampled_UPR: FloatArray
    """Drawn outcomes if the user's requests had the policy; number 0 is production."""
    expected_UPR: FloatArray
    """The same, expected."""
    action_PA: npt.NDArray[np.int64]
    """How often each operating point chose each action."""
    seed: int

    def select(self, users: npt.NDArray[np.bool_]) -> UserSums:
        """Some of the users; the choices of all."""
        return UserSums(
            requests_U=self.requests_U[users],
            cohort_U=self.cohort_U[users],
            sampled_UPR=self.sampled_UPR[users],
            expected_UPR=self.expected_UPR[users],
            action_PA=self.action_PA,
            seed=self.seed,
        )


@dataclass(frozen=True, kw_only=True)
class Lifts:
    """Lifts over production and their 95 % intervals by user, one row per policy."""

    lift_PR: FloatArray
    interval_PR2: FloatArray


def observe(
    world: World,
    network: ValueNetwork,
    *,
    scalarization_PM: FloatArray,
    static: Sequence[FloatArray],
    first: int,
    count: int,
    progress: Callable[[int], None],
) -> UserSums:
    """Serve ``count`` requests from number ``first`` on under production and every policy."""
    points, outcomes_count = len(scalarization_PM), len(world.outcomes)
    policies = 1 + points + len(static)
    users = world.config.users
    requests_U = np.zeros(users)
    sampled_UPR = np.zeros((users, policies, outcomes_count))
    expected_UPR = np.zeros_like(sampled_UPR)
    action_PA = np.zeros((points, world.surface.num_actions), dtype=np.int64)
    cpu = torch.device("cpu")
    for start in range(first, first + count, SLICE):
        batch = world.requests(start, min(SLICE, first + count - start))
        state = batch.state_tensors(world.surface)
        chosen_nP = choose_actions(world.surface, network, state, scalarization_PM, cpu)
        sampled, expected = _serve(world, batch, chosen_nP, static)
        np.add.at(requests_U, batch.user, 1.0)
        np.add.at(sampled_UPR, batch.user, sampled)
        np.add.at(expected_UPR, batch.user, expected)
        for p in range(points):
            action_PA[p] += np.bincount(chosen_nP[:, p], minlength=action_PA.shape[1])
        progress(len(batch))
    return UserSums(
        requests_U=requests_U,
        cohort_U=world.users.cohort.astype(np.intp),
        sampled_UPR=sampled_UPR,
        expected_UPR=expected_UPR,
        action_PA=action_PA,
        seed=world.config.seed,
    )


def _serve(
    world: World, batch: RequestBatch, chosen_nP: npt.NDArray[np.int16], static: Sequence[FloatArray]
) -> tuple[FloatArray, FloatArray]:
    """Drawn and expected outcomes of production, operating points and static vectors, [n, P, R] each."""
    surface, actions = world.surface, world.surface.num_actions
    vector_VW = np.stack([*surface.actions, surface.production, *static])
    vector_nP = np.empty((len(batch), 1 + chosen_nP.shape[1] + len(static)), dtype=np.int64)
    vector_nP[:, 0] = actions
    vector_nP[:, 1 : 1 + chosen_nP.shape[1]] = chosen_nP
    vector_nP[:, 1 + chosen_nP.shape[1] :] = actions + 1 + np.arange(len(static))
    expected_nPR, counts, session = world.serve(batch, vector_VW, vector_nP)
    return outcomes(world, counts, session).astype(np.float64), expected_nPR


def treated(seed: int, policy: int, users: int) -> npt.NDArray[np.bool_]:
    """The half of the users that test number ``policy`` treats, [U]."""
    return np.random.default_rng([seed, policy, 17]).random(users) < 0.5


def ab_sums(sums: UserSums, treated_PU: npt.NDArray[np.bool_]) -> FloatArray:
    """Sums of the A/B tests, [U, P-1, 2 arms, R, 2]: a user has zeros in the arm that he is not in."""
    arm_UP2 = np.stack([~treated_PU.T, treated_PU.T], axis=2)
    control_UPR = np.broadcast_to(sums.sampled_UPR[:, :1], sums.sampled_UPR[:, 1:].shape)
    outcome_UP2R = np.stack([control_UPR, sums.sampled_UPR[:, 1:]], axis=2)
    count_UP2R = np.broadcast_to(sums.requests_U[:, None, None, None], outcome_UP2R.shape)
    return np.asarray(np.stack([outcome_UP2R, count_UP2R], axis=-1) * arm_UP2[:, :, :, None, None])


def ab_tests(sum_UP2R2: FloatArray) -> Lifts:
    """Every policy against production between users."""
    lifts, intervals = [], []
    for p in range(sum_UP2R2.shape[1]):
        method = DeltaMethod()
        method.add(sum_UP2R2[:, p])
        lifts.append(relative_lifts(method.total_PR2)[1])
        intervals.append(method.bounds()[1])
    return Lifts(lift_PR=np.array(lifts), interval_PR2=np.array(intervals))


def truth(sums: UserSums, baseline: int = 0) -> Lifts:
    """Every policy but production against policy ``baseline``, expected, on the same requests."""
    count_UPR = np.broadcast_to(sums.requests_U[:, None, None], sums.expected_UPR.shape)
    sum_UPR2 = np.stack([sums.expected_UPR, count_UPR], axis=-1)
    method = DeltaMethod()
    method.add(np.concatenate([sum_UPR2[:, baseline : baseline + 1], sum_UPR2[:, 1:]], axis=1))
    return Lifts(lift_PR=relative_lifts(method.total_PR2)[1:], interval_PR2=method.bounds()[1:])
