"""Intervals of paired relative lifts, with users as the independent units.

One user's requests resemble each other, so rows are not independent: sums per user are. Both policies
of a lift are valued on the same users, and the noise that they share cancels.

An interval holds for one look. A sweep of 25 points is 25 looks at each outcome, so both methods also give
*simultaneous* bands, ``L ∓ c · sd(L)`` with one c for all lifts: c is the quantile of the largest of
``|L̂ - L| / sd`` over all policies and outcomes (max-t; Montiel Olea & Plagborg-Møller, *Simultaneous
confidence bands*, 2019). With the stated confidence all bands hold at once, so whatever is picked by looking
at their lower ends is covered. Neighbours on a sweep are alike, hence c is far below Bonferroni's.

Shape legend: U users, P policies (number 0 is the baseline), R outcomes, B resamples; the last axis of
``sum_UPR2`` holds numerator and denominator (:mod:`ray_train.estimators`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from statistics import NormalDist
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from ray_train.estimators import FloatArray

MAX_UNDEFINED_SHARE = 0.05
"""With more undefined resamples than this (no hits in them), the logs are too thin for an interval."""

MOST_JOINT = 1024
"""Sums per user (policies x outcomes x 2) up to which the normal bands use their joint distribution."""

_QUANTUM = 1 << 16
_RESTING = 1e-6
"""A lift whose standard deviation is below this is production's own."""


def _poisson_table() -> npt.NDArray[np.float32]:
    """Quantiles of Poisson(1) at 2^16 levels: a 16-bit draw becomes a count by one look-up."""
    pmf = [math.exp(-1.0) / math.factorial(k) for k in range(12)]
    bounds = np.rint(np.cumsum(pmf) * _QUANTUM).astype(np.int64)
    return np.searchsorted(bounds, np.arange(_QUANTUM), side="right").astype(np.float32)


def relative_lifts(sum_PR2: FloatArray) -> FloatArray:
    """``L_p = (N_p / D_p) / (N_0 / D_0) - 1`` for every policy against number 0 (Eq. 10), NaN if undefined.

    Leading axes are kept: [..., P, R, 2] → [..., P, R].
    """
    value = ratios(sum_PR2)
    baseline = value[..., :1, :]
    with np.errstate(divide="ignore", invalid="ignore"):
        lift = value / baseline - 1.0
    return np.where(baseline > 0, lift, np.nan)


def ratios(sum_PR2: FloatArray) -> FloatArray:
    """Numerator over denominator, [..., 2] → [...]; NaN where the denominator is not positive."""
    numerator, denominator = sum_PR2[..., 0], sum_PR2[..., 1]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(denominator > 0, numerator / denominator, np.nan)


@dataclass(frozen=True)
class Bands:
    """Bounds that hold together."""

    bounds_PR2: FloatArray
    critical: float
    """c; NaN where there is nothing to bound."""


class IntervalMethod(ABC):
    """Fed with sums per user, chunk by chunk; each user is in exactly one chunk."""

    name: ClassVar[str]

    def __init__(self, *, confidence: float = 0.95) -> None:
        if not 0 < confidence < 1:
            raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
        self.confidence = confidence

    @abstractmethod
    def add(self, sum_UPR2: FloatArray) -> None:
        """Take in the sums of some more users."""

    @abstractmethod
    def bounds(self) -> FloatArray:
        """Lower and upper bound of every lift, [P, R, 2]; NaN where the data do not give one."""

    @abstractmethod
    def bands(self) -> Bands:
        """Simultaneous bounds of all lifts."""


class ClusterBootstrap(IntervalMethod):
    """Percentile bootstrap over users: quantiles of ``L*_b``, ``b = 1..B``.

    Resample b gives user u the weight ``k_bu ~ Poisson(1)``, the large-sample form of drawing users with
    replacement (Chamandy et al., *Estimating Uncertainty for Massive Data Streams*, 2012). One weight
    serves all policies, so lifts are paired. Users arrive in chunks and memory is independent of their
    number. Deterministic for a seed and a chunking.
    """

    name: ClassVar[str] = "percentile cluster bootstrap by user"

    def __init__(self, *, resamples: int, seed: int, confidence: float = 0.95) -> None:
        super().__init__(confidence=confidence)
        if resamples < 2:
            raise ValueError(f"a bootstrap needs at least 2 resamples, got {resamples}")
        self.resamples = resamples
        self._seed = seed
        self._chunks = 0
        self._table = _poisson_table()
        self._sum_BPR2: FloatArray | None = None

    def add(self, sum_UPR2: FloatArray) -> None:
        """Add the chunk's weighted sums to every resample's."""
        users, *shape = sum_UPR2.shape
        generator = np.random.default_rng([self._seed, self._chunks])
        self._chunks += 1
        if self._sum_BPR2 is None:
            self._sum_BPR2 = np.zeros((self.resamples, *shape))
        draws_BU = generator.integers(0, _QUANTUM, size=(self.resamples, users), dtype=np.uint16)
        # Counts and a chunk's sums are exact enough in float32; chunks add up in float64.
        part_BX = self._table[draws_BU] @ sum_UPR2.reshape(users, -1).astype(np.float32)
        self._sum_BPR2 += part_BX.reshape(self._sum_BPR2.shape)

    def bounds(self) -> FloatArray:
        """Quantiles at (1 ∓ confidence) / 2 of the resampled lifts."""
        if self._sum_BPR2 is None:
            raise ValueError("no users were added")
        lift_BPR = relative_lifts(self._sum_BPR2)
        tail = (1.0 - self.confidence) / 2.0
        undefined_PR = np.isnan(lift_BPR).mean(axis=0)
        filled = np.where(undefined_PR > MAX_UNDEFINED_SHARE, 0.0, lift_BPR)
        bounds_2PR = np.nanquantile(filled, [tail, 1.0 - tail], axis=0)
        bounds_2PR[:, undefined_PR > MAX_UNDEFINED_SHARE] = np.nan
        return np.moveaxis(bounds_2PR, 0, -1)

    def bands(self) -> Bands:
        """``L ∓ c · sd(L*)`` around the mean of the resamples, c from ``max |L*_b - mean| / sd``."""
        if self._sum_BPR2 is None:
            raise ValueError("no users were added")
        lift_BPR = relative_lifts(self._sum_BPR2)
        thin_PR = np.isnan(lift_BPR).mean(axis=0) > MAX_UNDEFINED_SHARE
        filled = np.where(thin_PR, 0.0, lift_BPR)
        centre_PR, sd_PR = np.nanmean(filled, axis=0), np.nanstd(filled, axis=0, ddof=1)
        moving_PR = (sd_PR > _RESTING) & ~thin_PR
        critical = math.nan
        if moving_PR.any():
            t_BX = np.abs(filled - centre_PR)[:, moving_PR] / sd_PR[moving_PR]
            critical = float(np.quantile(np.nanmax(t_BX, axis=1), self.confidence))
        half_PR = np.where(moving_PR, sd_PR * np.nan_to_num(critical), 0.0)
        bounds = np.stack([centre_PR - half_PR, centre_PR + half_PR], axis=-1)
        return Bands(np.where(thin_PR[..., None], np.nan, bounds), critical)


class DeltaMethod(IntervalMethod):
    """Normal interval of ``L`` with ``sd(L) ≈ (1 + L) · sd(log(1 + L))``.

    ``log(1 + L) = log N_p - log D_p - log N_0 + log D_0`` is linear in the users' sums to first order, so
    its variance is the sum over users of ``(n_p/N_p - d_p/D_p - n_0/N_0 + d_0/D_0)²``. The arms of an A/B
    test are the case of users with zeros everywhere but in their own arm.
    """

    name: ClassVar[str] = "normal (delta method) by user"

    def __init__(self, *, confidence: float = 0.95) -> None:
        super().__init__(confidence=confidence)
        self._sum_PR2: FloatArray | float = 0.0
        self._gram_PR44: FloatArray | float = 0.0
        self._gram_XX: FloatArray | float | None = 0.0
        self._users = 0

    def add(self, sum_UPR2: FloatArray) -> None:
        """Add up the sums and the cross products of (n_p, d_p, n_0, d_0); of all sums if they are few."""
        users = len(sum_UPR2)
        both_UPR4 = np.concatenate([sum_UPR2, np.broadcast_to(sum_UPR2[:, :1], sum_UPR2.shape)], axis=-1)
        self._sum_PR2 = self._sum_PR2 + sum_UPR2.sum(axis=0)
        self._gram_PR44 = self._gram_PR44 + np.einsum("upri,uprj->prij", both_UPR4, both_UPR4)
        self._users += users
        if self._gram_XX is not None and sum_UPR2[0].size <= MOST_JOINT:
            flat_UX = sum_UPR2.reshape(users, -1)
            self._gram_XX = self._gram_XX + flat_UX.T @ flat_UX
        else:
            self._gram_XX = None

    def merge(self, other: DeltaMethod) -> None:
        """Take in what another one was fed, with other users."""
        self._sum_PR2 = self._sum_PR2 + other._sum_PR2
        self._gram_PR44 = self._gram_PR44 + other._gram_PR44
        self._users += other._users
        if self._gram_XX is not None and other._gram_XX is not None:
            self._gram_XX = self._gram_XX + other._gram_XX
        else:
            self._gram_XX = None

    @property
    def total_PR2(self) -> FloatArray:
        """Sums over all users.

        Raises:
            ValueError: there were none.
        """
        if isinstance(self._sum_PR2, float):
            raise ValueError("no users were added")
        return self._sum_PR2

    def bounds(self) -> FloatArray:
        """``L ∓ z · sd(L)``."""
        lift_PR, sd_PR = self._moments()
        return _around(lift_PR, sd_PR * NormalDist().inv_cdf(0.5 + self.confidence / 2.0))

    def bands(self) -> Bands:
        """c from the joint normal distribution of the lifts; Bonferroni's if they are very many."""
        lift_PR, sd_PR = self._moments()
        moving_PR = np.isfinite(sd_PR) & (sd_PR > _RESTING)
        critical = math.nan
        if moving_PR.any():
            critical = self._critical(moving_PR)
        return Bands(_around(lift_PR, sd_PR * np.nan_to_num(critical)), critical)

    def _moments(self) -> tuple[FloatArray, FloatArray]:
        """Lifts and their standard deviations, [P, R]."""
        sum_PR2 = self.total_PR2
        total_PR4 = np.concatenate([sum_PR2, np.broadcast_to(sum_PR2[:1], sum_PR2.shape)], axis=-1)
        with np.errstate(divide="ignore", invalid="ignore"):
            slope_PR4 = np.array([1.0, -1.0, -1.0, 1.0]) / total_PR4
            variance_PR = np.einsum("pri,prij,prj->pr", slope_PR4, self._gram_PR44, slope_PR4)
            lift_PR = relative_lifts(sum_PR2)
            # A policy that is the baseline has variance 0 up to rounding.
            variance_PR = np.maximum(variance_PR, 0.0) * self._users / max(self._users - 1, 1)
            return lift_PR, (1.0 + lift_PR) * np.sqrt(variance_PR)

    def _critical(self, moving_PR: npt.NDArray[np.bool_]) -> float:
        looks = int(moving_PR.sum())
        if self._gram_XX is None or isinstance(self._gram_XX, float):
            return NormalDist().inv_cdf(0.5 + (1.0 - (1.0 - self.confidence) / looks) / 2.0)
        policies, outcomes, _ = self.total_PR2.shape
        # Row (p, r): the derivative of log(1 + L) by all sums, which are in the order policy, outcome, part.
        with np.errstate(divide="ignore", invalid="ignore"):
            inverse_PR2 = np.array([1.0, -1.0]) / self.total_PR2
        slope = np.zeros((policies, outcomes, policies, outcomes, 2))
        p, r = np.meshgrid(np.arange(policies), np.arange(outcomes), indexing="ij")
        slope[p, r, p, r] += inverse_PR2
        slope[p, r, 0, r] -= inverse_PR2[:1]
        slope_YX = slope[moving_PR].reshape(looks, -1)
        slope_YX = np.where(np.isfinite(slope_YX), slope_YX, 0.0)
        covariance_YY = slope_YX @ self._gram_XX @ slope_YX.T
        sd_Y = np.sqrt(np.maximum(np.diag(covariance_YY), _RESTING**2))
        return max_normal(covariance_YY / np.outer(sd_Y, sd_Y), self.confidence)


def _around(lift_PR: FloatArray, half_PR: FloatArray) -> FloatArray:
    bounds = np.stack([lift_PR - half_PR, lift_PR + half_PR], axis=-1)
    return np.where(np.isfinite(bounds), bounds, np.nan)


def max_normal(correlation_YY: FloatArray, confidence: float, *, draws: int = 20_000) -> float:
    """Quantile of ``max |Z_y|`` for ``Z ~ N(0, correlation)``, by simulation with a fixed seed."""
    spread, directions = np.linalg.eigh(correlation_YY)
    keep = spread > 1e-9 * spread.max()
    root_YX = directions[:, keep] * np.sqrt(spread[keep])
    normal_DX = np.random.default_rng(0).normal(size=(draws, int(keep.sum())))
    return float(np.quantile(np.abs(normal_DX @ root_YX.T).max(axis=1), confidence))
