"""Policies valued together on the same rows: values, paired lifts, intervals, hits.

One pass over the rows in chunks of whole users; what is held is one chunk's sums, whatever the number
of rows, users or policies.

Shape legend: N rows, U users of a chunk, P policies (number 0 is the baseline), R outcomes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ray_train.estimators import Estimator, FloatArray, LoggedRows, Policy
from ray_train.intervals import Bands, IntervalMethod, ratios, relative_lifts

CHUNK_ROWS = 16_384
"""Rows per chunk (whole users): 25 policies and 4 outcomes make about 30 MB of sums."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Estimates of P policies; NaN where the logs cannot tell."""

    value_PR: FloatArray
    lift_PR: FloatArray
    bounds_PR2: FloatArray
    """Interval of each lift by itself."""
    bands_PR2: FloatArray
    """Bounds of all lifts that hold together."""
    critical: float
    """Their width, in standard deviations."""
    hits_P: npt.NDArray[np.int64]
    effective_P: FloatArray
    """Kish's effective sample size, (Σ w)² / Σ w²."""


def evaluate(
    estimator: Estimator,
    rows: LoggedRows,
    policies: Sequence[Policy],
    interval: IntervalMethod | None,
    *,
    chunk_rows: int = CHUNK_ROWS,
) -> Evaluation:
    """Value policies on rows that are sorted by user; ``policies[0]`` is the baseline of the lifts.

    The intervals lie around the estimates and are as wide as those of the estimator's
    :attr:`~ray_train.estimators.Terms.spread_HR` where it has one. Without an interval method the bounds are
    NaN.
    """
    outcomes = rows.outcome_NR.shape[1]
    total_PR2, spread_PR2 = np.zeros((2, len(policies), outcomes, 2))
    moment_P3 = np.zeros((len(policies), 3))
    for part in user_chunks(rows.user_N, chunk_rows):
        sum_UPR2, spread_UPR2, part_P3 = _chunk_sums(
            estimator, rows.take(part), [policy.take(part) for policy in policies]
        )
        total_PR2 += sum_UPR2.sum(axis=0)
        moment_P3 += part_P3
        if interval is not None:
            spread_PR2 += spread_UPR2.sum(axis=0)
            interval.add(spread_UPR2)
    # Where no row took the policy's action a model would still answer; the logs do not.
    total_PR2[moment_P3[:, 0] == 0] = 0.0
    lift_PR = relative_lifts(total_PR2)
    bounds = np.full(total_PR2.shape, np.nan)
    bands = Bands(bounds, float("nan"))
    if interval is not None and len(rows):
        shift_PR1 = (lift_PR - relative_lifts(spread_PR2))[..., None]
        bounds, bands = interval.bounds() + shift_PR1, interval.bands()
        bands = Bands(bands.bounds_PR2 + shift_PR1, bands.critical)
    undefined = np.isnan(lift_PR)[..., None]
    weight_P, square_P = moment_P3[:, 1], moment_P3[:, 2]
    return Evaluation(
        value_PR=ratios(total_PR2),
        lift_PR=lift_PR,
        bounds_PR2=np.where(undefined, np.nan, bounds),
        bands_PR2=np.where(undefined, np.nan, bands.bounds_PR2),
        critical=bands.critical,
        hits_P=moment_P3[:, 0].astype(np.int64),
        effective_P=np.divide(weight_P**2, square_P, out=np.zeros_like(weight_P), where=square_P > 0),
    )


def user_chunks(user_N: npt.NDArray[np.int32], chunk_rows: int) -> Iterator[slice]:
    """Slices of about ``chunk_rows`` rows that never cut a user in two.

    Raises:
        ValueError: the rows are not sorted by user.
    """
    if len(user_N) and (np.diff(user_N) < 0).any():
        raise ValueError("rows must be sorted by user")
    start = 0
    while start < len(user_N):
        stop = min(start + chunk_rows, len(user_N))
        stop = int(np.searchsorted(user_N, user_N[stop - 1], side="right"))
        yield slice(start, stop)
        start = stop


def user_starts(user_N: npt.NDArray[np.int32]) -> npt.NDArray[np.intp]:
    """The first row of every user, of rows that are sorted by user, [U]."""
    return np.flatnonzero(np.diff(user_N, prepend=user_N[:1] - 1))


def _chunk_sums(
    estimator: Estimator, rows: LoggedRows, policies: Sequence[Policy]
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Per user sums, those the intervals are made of [U, P, R, 2]; (hits, Σ w, Σ w²) per policy [P, 3]."""
    first_U = user_starts(rows.user_N)
    local_N = np.repeat(np.arange(len(first_U)), np.diff(first_U, append=len(rows)))
    users, outcomes = len(first_U), rows.outcome_NR.shape[1]

    def by_user(part_HR: FloatArray, row_H: npt.NDArray[np.intp] | None) -> FloatArray:
        """Sums of the rows of every user, [U, R]."""
        if row_H is None:
            return np.add.reduceat(part_HR, first_U, axis=0)
        user_H = local_N[row_H]  # not every user has one of them
        sums = [np.bincount(user_H, weights=part_H, minlength=users) for part_H in part_HR.T]
        return np.stack(sums, axis=1)

    sum_UPR2 = np.zeros((users, len(policies), outcomes, 2))
    spread_UPR2 = sum_UPR2
    moment_P3 = np.zeros((len(policies), 3))
    prepared = estimator.prepare(rows)
    shared_HR, shared_UR = np.zeros((0, outcomes)), np.zeros((users, outcomes))
    for p, policy in enumerate(policies):
        terms = estimator.terms(prepared, policy)
        moment_P3[p] = terms.hits, terms.weight_H.sum(), (terms.weight_H**2).sum()
        if terms.denominator_HR is not shared_HR:  # with a model every row counts, whatever the policy
            shared_HR, shared_UR = terms.denominator_HR, by_user(terms.denominator_HR, terms.row_H)
        sum_UPR2[:, p, :, 0] = by_user(terms.numerator_HR, terms.row_H)
        sum_UPR2[:, p, :, 1] = shared_UR
        if terms.spread_HR is None:
            continue
        if spread_UPR2 is sum_UPR2:
            spread_UPR2 = np.zeros_like(sum_UPR2)
        spread_UPR2[:, p, :, 0] = by_user(terms.spread_HR, terms.row_H)
        spread_UPR2[:, p, :, 1] = shared_UR
    return sum_UPR2, spread_UPR2, moment_P3
