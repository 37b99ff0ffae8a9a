"""The chi-square distribution, for sample-ratio checks."""

from __future__ import annotations

from math import erfc, exp, lgamma, log, sqrt


def chi_square_tail(value: float, freedom: int) -> float:
    """``P(χ² > value)`` with ``freedom`` degrees of freedom; 1 without any.

    For an even number 2m it is ``Σ_{i<m} e^(-x/2) (x/2)^i / i!``; for an odd one 2m + 1 the terms have
    ``i + 1/2`` instead of ``i``, and ``erfc(√(x/2))`` comes on top (Abramowitz & Stegun 26.4.4 and 26.4.5).
    """
    if freedom < 1 or value <= 0:
        return 1.0
    half, odd = value / 2.0, freedom % 2
    powers = (i + odd / 2.0 for i in range(freedom // 2))
    series = sum(exp(power * log(half) - half - lgamma(power + 1.0)) for power in powers)
    return min(1.0, series + (erfc(sqrt(half)) if odd else 0.0))
