"""Lifts of arms whose shares changed with time: each time is compared within itself.

With ``V_ps = N_ps / D_ps`` of arm p in stratum s, both arms are averaged over the strata with the same
weights (Mantel & Haenszel 1959; for ratios of means Greenland & Robins 1985):

    1 + L_p = Σ_s g_s V_ps / Σ_s g_s V_0s ,    g_s = D_ps D_0s / (D_ps + D_0s) ,

the weights that a constant lift is known best with. A stratum without one of the two arms says nothing and
counts nothing; where the shares never changed this is the ratio of the pooled values.

Shape legend: U users, P arms (number 0 is the control), S strata, R outcomes; the last axis of sums holds
numerator and denominator.
"""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

NAME = "normal (delta method) by user, within times of equal shares"


class StratifiedDelta:
    """Normal interval of ``L``, as :class:`ray_train.intervals.DeltaMethod` makes it.

    With ``T = D_p + D_0`` per stratum, ``A = Σ N_p D_0 / T`` and ``B = Σ N_0 D_p / T``, ``log(1 + L)`` is
    ``log A - log B``; its derivatives by a user's sums are

        ∂/∂n_p = (D_0 / T) / A            ∂/∂d_p = -D_0 (N_p / A + N_0 / B) / T²
        ∂/∂n_0 = -(D_p / T) / B           ∂/∂d_0 =  D_p (N_p / A + N_0 / B) / T²

    and its variance is the sum over users of the square of what they add to it. Users may be in several arms
    and strata: a ramp moves them.
    """

    def __init__(self, *, confidence: float = 0.95) -> None:
        self.confidence = confidence
        self._sum_PSR2: FloatArray | float = 0.0
        self._gram_PRXX: FloatArray | float = 0.0
        self._users = 0

    def add(self, sum_UPSR2: FloatArray) -> None:
        """Take in the sums of some more users: their totals, and the products of (n_p, d_p, n_0, d_0)."""
        users, arms, strata, outcomes, _ = sum_UPSR2.shape
        gram = np.zeros((arms, outcomes, 4 * strata, 4 * strata))
        for r in range(outcomes):
            for p in range(1, arms):
                both_U2S2 = sum_UPSR2[:, :, :, r][:, [p, 0]]
                flat_UX = np.moveaxis(both_U2S2, 3, 2).reshape(users, 4 * strata)
                gram[p, r] = flat_UX.T @ flat_UX
        self._sum_PSR2 = self._sum_PSR2 + sum_UPSR2.sum(axis=0)
        self._gram_PRXX = self._gram_PRXX + gram
        self._users += users

    def merge(self, other: StratifiedDelta) -> None:
        """Take in what another one was fed, with other users."""
        self._sum_PSR2 = self._sum_PSR2 + other._sum_PSR2
        self._gram_PRXX = self._gram_PRXX + other._gram_PRXX
        self._users += other._users

    @property
    def total_PR2(self) -> FloatArray:
        """Sums over all users and strata.

        Raises:
            ValueError: there were none.
        """
        if isinstance(self._sum_PSR2, float):
            raise ValueError("no users were added")
        return np.asarray(self._sum_PSR2.sum(axis=1))

    def lifts(self) -> FloatArray:
        """``L``, [P, R]; NaN where no stratum compares, or the control's value is 0."""
        return self._moments()[0]

    def bounds(self) -> FloatArray:
        """``L ∓ z · sd(L)``, [P, R, 2]; NaN where the data do not give them."""
        lift_PR, sd_PR = self._moments()
        half_PR = sd_PR * NormalDist().inv_cdf(0.5 + self.confidence / 2.0)
        bounds = np.stack([lift_PR - half_PR, lift_PR + half_PR], axis=-1)
        return np.where(np.isfinite(bounds), bounds, np.nan)

    def _moments(self) -> tuple[FloatArray, FloatArray]:
        """Lifts and their standard deviations, [P, R]."""
        if isinstance(self._sum_PSR2, float) or isinstance(self._gram_PRXX, float):
            raise ValueError("no users were added")
        n_PRS, d_PRS = (np.moveaxis(self._sum_PSR2[..., k], 1, 2) for k in (0, 1))
        with np.errstate(divide="ignore", invalid="ignore"):
            one_PRS, two_PRS = (
                np.where((d_PRS > 0) & (d_PRS[:1] > 0), part / (d_PRS + d_PRS[:1]), 0.0)
                for part in (d_PRS[:1], d_PRS)
            )  # D_0 / T and D_p / T
            a_PR1 = (n_PRS * one_PRS).sum(axis=2, keepdims=True)
            b_PR1 = (n_PRS[:1] * two_PRS).sum(axis=2, keepdims=True)
            common_PRS = (n_PRS / a_PR1 + n_PRS[:1] / b_PR1) * np.where(
                one_PRS > 0, 1.0 / (d_PRS + d_PRS[:1]), 0.0
            )
            slope_PRX = np.concatenate(
                [one_PRS / a_PR1, -one_PRS * common_PRS, -two_PRS / b_PR1, two_PRS * common_PRS], axis=2
            )
            variance_PR = np.einsum("prx,prxy,pry->pr", slope_PRX, self._gram_PRXX, slope_PRX)
            variance_PR = np.maximum(variance_PR, 0.0) * self._users / max(self._users - 1, 1)
            lift_PR = np.where(b_PR1 > 0, a_PR1 / b_PR1 - 1.0, np.nan)[:, :, 0]
            return lift_PR, (1.0 + lift_PR) * np.sqrt(variance_PR)
