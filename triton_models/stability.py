"""Is it still the same population? Histograms over bins of equal share, and an index of their difference.

``PSI = Σ_k (q_k - p_k) log(q_k / p_k)``, the population stability index (the symmetric Kullback-Leibler
divergence of two histograms; Siddiqi, *Credit Risk Scorecards*, 2006). Read below 0.1 as the same, above 0.25
as another population. Where nothing changed it is about ``(B - 1) (1/n + 1/m)`` for ``B`` bins of ``n`` and
``m`` independent values, which is what samples have to be large for.

Shape legend: N values, E edges, B = E + 1 bins.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

BINS = 10
"""Deciles: the usual choice, coarse enough for a few hundred requests."""


def population_stability(expected: npt.ArrayLike, seen: npt.ArrayLike) -> float:
    """The index of two histograms over the same bins.

    Half a row is added to every bin, so that empty ones do not make it infinite. 0 where either is empty.

    Raises:
        ValueError: they have different bins.
    """
    p, q = (np.asarray(counts, dtype=np.float64) for counts in (expected, seen))
    if p.shape != q.shape:
        raise ValueError(f"histograms must have the same bins, got {p.shape} and {q.shape}")
    if p.sum() <= 0 or q.sum() <= 0:
        return 0.0
    p, q = (p + 0.5) / (p + 0.5).sum(), (q + 0.5) / (q + 0.5).sum()
    return float(((q - p) * np.log(q / p)).sum())


def quantile_edges(values_N: npt.ArrayLike, bins: int = BINS) -> FloatArray:
    """Edges between bins of about equal share, strictly increasing; empty for no values.

    A value so frequent that it is several quantiles at once gets a bin of its own: the edges are it and the
    next number, so that what used to be constant is seen to move both up and down.
    """
    values_N = np.asarray(values_N, dtype=np.float64)
    if not len(values_N):
        return np.empty(0)
    quantiles = np.quantile(values_N, np.arange(1, bins) / bins, method="inverted_cdf")
    edges, times = np.unique(quantiles, return_counts=True)
    atoms = np.nextafter(edges[times > 1], np.inf)
    unique: FloatArray = np.unique(np.concatenate([edges, atoms]))
    return unique


def bin_counts(edges_E: npt.ArrayLike, values_N: npt.ArrayLike) -> IntArray:
    """Values in each of the E + 1 bins; an edge belongs to the bin above it."""
    edges_E = np.asarray(edges_E, dtype=np.float64)
    place_N = np.searchsorted(edges_E, np.asarray(values_N, dtype=np.float64), side="right")
    return np.bincount(place_N, minlength=len(edges_E) + 1).astype(np.int64)
