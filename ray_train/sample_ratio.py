"""Do the logged actions occur as often as the logged propensities say?

For the logged action ``a_i`` with propensity ``p_i`` of N rows, inverse-propensity
counts have a known mean for every action, whatever the rows' propensities are::

    T_a = Σ_{i: a_i = a} 1 / p_i,   E[T_a] = N,   Var[T_a] ≈ Σ_{i: a_i = a} (1/p_i)(1/p_i - 1)

Actions with ``|T_a - N|`` beyond what a family-wise error of 0.1 % allows are named. The statistic over
all actions is Pearson's, with ``e_a = N n_a / T_a`` expected rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from ray_train.checks import Totals
from ray_train.chi_square import chi_square_tail

FAMILY_ERROR = 1e-3
"""Chance that a log which is right gets a sample-ratio warning."""


@dataclass(frozen=True, kw_only=True)
class SampleRatio:
    """Do the logged actions occur as often as the logged propensities say?"""

    chi_square: float
    p_value: float
    deviating: tuple[tuple[int, int, float], ...]
    """Actions that occur too often or too seldom: (number, rows, expected rows)."""

    @property
    def suspicious(self) -> bool:
        """Whether to warn."""
        return bool(self.deviating) or self.p_value < FAMILY_ERROR


def sample_ratio(totals: Totals) -> SampleRatio:
    """Pearson's test over the actions, and each action on its own (see the module)."""
    observed, rows = totals.actions.astype(np.float64), int(totals.actions.sum())
    seen = observed > 0
    expected = np.zeros_like(observed)
    expected[seen] = rows * observed[seen] / totals.inverse[seen]
    if not seen.all():  # what the propensities of the others leave over
        expected[~seen] = max(rows - expected.sum(), 0.0) / (~seen).sum()
    likely = expected > 0
    chi_square = float(((observed - expected)[likely] ** 2 / expected[likely]).sum())
    deviation = np.zeros_like(observed)
    spread = np.sqrt(np.maximum(totals.variance, 1e-12))
    with np.errstate(
        invalid="ignore"
    ):  # infinite ones, of propensities that are next to nothing, say nothing
        deviation[seen] = (totals.inverse[seen] - rows) / spread[seen]
    deviation[seen & (totals.variance == 0)] = np.where(
        totals.inverse[seen & (totals.variance == 0)] == rows, 0.0, np.inf
    )
    deviation[~seen] = -np.sqrt(expected[~seen])
    limit = NormalDist().inv_cdf(1 - FAMILY_ERROR / (2 * len(observed)))
    order = np.argsort(-np.abs(deviation))
    return SampleRatio(
        chi_square=chi_square,
        p_value=chi_square_tail(chi_square, int(likely.sum()) - 1),
        deviating=tuple(
            (int(a), int(observed[a]), float(expected[a])) for a in order if abs(deviation[a]) > limit
        ),
    )
