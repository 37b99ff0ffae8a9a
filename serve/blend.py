"""Blend and cut: ``u(s,x;w) = Σ_i w_i h_i(s,x)`` (arXiv 2605.16344, Eq. 1), the top k by u are served.

Shape legend: n candidates, H heads, W controlled weights, k served.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from triton_models.surface import FloatArray, Surface

SORT_ALL = 512
"""Up to so many candidates one stable sort is faster than a partition and what follows it."""


class Blend:
    """The utility of one surface and one order of the ranker's score columns."""

    def __init__(self, surface: Surface, columns: tuple[str, ...]) -> None:
        self._num_columns = len(columns)
        self._controlled = np.array([columns.index(head) for head in surface.controlled_heads])
        self._base = np.zeros(len(columns))
        for head, weight in surface.fixed.items():
            self._base[columns.index(head)] = weight

    def utility(self, scores_nH: npt.NDArray[Any], weights_W: FloatArray) -> FloatArray:
        """u of every candidate, [n]. Columns that the surface does not weigh count nothing."""
        weights_H = self._base.copy()
        weights_H[self._controlled] = weights_W
        # Scores near the float64 limit overflow; the caller refuses a utility that is not finite. dot goes to
        # BLAS and says nothing of it, so that no errstate is needed, which costs as much as the product.
        return np.asarray(np.dot(scores_nH.astype(np.float64, copy=False), weights_H))


def top_k(utility_n: FloatArray, k: int) -> npt.NDArray[np.int64]:
    """Indices of the k largest utilities, best first; of equals the earlier candidate comes first.

    O(n + k log k): a partition finds the k-th value, only what is kept is sorted. Of few candidates all are
    sorted, which is fewer calls.
    """
    count = len(utility_n)
    k = min(k, count)
    if count <= SORT_ALL:
        return np.argsort(-utility_n, kind="stable")[:k].astype(np.int64, copy=False)
    if k < count:
        threshold = np.partition(utility_n, count - k)[count - k]
        above = np.flatnonzero(utility_n > threshold)
        equal = np.flatnonzero(utility_n == threshold)[: k - len(above)]
        chosen = np.sort(np.concatenate([above, equal]))
    else:
        chosen = np.arange(count)
    return chosen[np.argsort(-utility_n[chosen], kind="stable")].astype(np.int64)
