"""Does offline predict online? Pearson's r over operating points, and how sure that is.

    r = cov(offline_p, online_p) / (sd sd),    z = artanh r

Points of one sweep are no independent draws, so r has no textbook interval. Two things are shown instead:
for one world the percentile interval of r over resampled users of the A/B tests (offline lifts held), and
over worlds Student's interval of the mean of z, taken back to r.

Shape legend: P points, M objectives, U users, B resamples.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from benchmarks.paper.over_seeds import mean_with_interval
from ray_train.estimators import FloatArray
from ray_train.intervals import relative_lifts

RESAMPLES = 500
CHUNK_USERS = 2000
LARGEST = 1.0 - 1e-12


def pearson(one_P: npt.ArrayLike, two_P: npt.ArrayLike) -> float:
    """r, or NaN for fewer than two points or a constant."""
    x, y = np.asarray(one_P, dtype=float), np.asarray(two_P, dtype=float)
    known = np.isfinite(x) & np.isfinite(y)
    x, y = x[known], y[known]
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    return float(np.corrcoef(x, y)[0, 1])


def online_interval(
    offline_PM: FloatArray, sum_UP2M2: FloatArray, *, seed: int, resamples: int = RESAMPLES
) -> FloatArray:
    """95 % percentile interval of r per objective over Poisson(1)-resampled users, [M, 2]."""
    rng = np.random.default_rng([seed, 29])
    total = np.zeros((resamples, *sum_UP2M2.shape[1:]))
    for start in range(0, len(sum_UP2M2), CHUNK_USERS):
        part = sum_UP2M2[start : start + CHUNK_USERS]
        count_BU = rng.poisson(1.0, (resamples, len(part))).astype(np.float64)
        total += (count_BU @ part.reshape(len(part), -1)).reshape(total.shape)
    lift_BPM = relative_lifts(total)[:, :, 1]
    r_BM = np.array(
        [[pearson(offline_PM[:, m], lift[:, m]) for m in range(lift.shape[1])] for lift in lift_BPM]
    )
    return np.asarray(np.nanquantile(r_BM, [0.025, 0.975], axis=0).T)


def over_worlds(found: Sequence[float]) -> tuple[float, tuple[float, float] | None]:
    """Mean r over worlds by way of z, and its interval; none for a single world."""
    z = np.arctanh(np.clip(np.asarray(found, dtype=float), -LARGEST, LARGEST))
    mean, bounds = mean_with_interval(z)
    if bounds is None:
        return float(np.tanh(mean)), None
    return float(np.tanh(mean)), (float(np.tanh(bounds[0])), float(np.tanh(bounds[1])))


def near(labels: dict[str, int], points: int, *, steps: int = 5) -> npt.NDArray[np.intp]:
    """Points within so many steps of the balanced one: the part of a sweep that anybody would test."""
    middle = labels["balanced"]
    return np.arange(max(0, middle - steps), min(points, middle + steps + 1))
