"""Knobs of estimators that trade bias for noise, set from the rows that are valued.

A candidate's mean squared error is estimated as ``Var(V̂_c) + max(0, D_c² - Var(D_c))``, D_c being its
difference from DR, which is unbiased; relative to the value, summed over policies and objectives, with
variances over users. (Su et al. 2020 and Wang et al. 2017 bound the bias instead; DR on the same rows
measures it.)

Shape legend: U users of a chunk, R outcomes, C candidates.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ray_train.estimators import FloatArray, LoggedRows, Policy
from ray_train.estimators_model import DoublyRobust, ModelEstimator
from ray_train.evaluation import CHUNK_ROWS, user_chunks, user_starts

MOST_POLICIES = 6
"""Policies that are looked at; neighbours on a sweep say the same."""


def some_policies(policies: Sequence[Policy]) -> list[Policy]:
    """A few of the policies, from the first to the last."""
    index = np.unique(np.linspace(0, len(policies) - 1, MOST_POLICIES).round().astype(int))
    return [policies[i] for i in index]


def least_error(
    candidates: Sequence[ModelEstimator], rows: LoggedRows, policies: Sequence[Policy], outcomes: int
) -> int:
    """The candidate with the least estimated error; rows sorted by user, one reward model for all."""
    reference = DoublyRobust(candidates[0].model)
    error_C = np.zeros(len(candidates))
    for policy in some_policies(policies):
        sums = _user_moments([reference, *candidates], rows, policy, outcomes)
        value, variance = sums[0], sums[1]
        scale = np.maximum(value[0], 1e-12) ** 2
        bias = sums[2] ** 2 - sums[3]
        error_C += ((variance + np.maximum(bias, 0.0)) / scale)[1:].sum(axis=1)
    return int(np.argmin(error_C))


def _user_moments(
    estimators: Sequence[ModelEstimator], rows: LoggedRows, policy: Policy, outcomes: int
) -> FloatArray:
    """Value, its variance, difference from estimator 0 and its variance: [4, estimators, outcomes]."""
    total = np.zeros((4, len(estimators), outcomes))
    count_R = np.zeros(outcomes)
    for part in user_chunks(rows.user_N, CHUNK_ROWS):
        prepared = estimators[0].prepare(rows.take(part))
        first_U = user_starts(prepared.user_N)
        size_UR = np.add.reduceat(prepared.known_NR[:, :outcomes], first_U, axis=0)
        count_R += size_UR.sum(axis=0)
        mine, sums = policy.take(part), []
        for estimator in estimators:
            numerator_NR = estimator.terms(prepared, mine).numerator_HR[:, :outcomes]
            sums.append(np.add.reduceat(numerator_NR, first_U, axis=0))
        for e, sum_UR in enumerate(sums):
            difference_UR = sum_UR - sums[0]
            total[0, e] += sum_UR.sum(axis=0)
            total[1, e] += (sum_UR**2).sum(axis=0)
            total[2, e] += difference_UR.sum(axis=0)
            total[3, e] += (difference_UR**2).sum(axis=0)
    count_R = np.maximum(count_R, 1.0)
    return np.stack([total[0] / count_R, total[1] / count_R**2, total[2] / count_R, total[3] / count_R**2])
