"""Means over worlds with Student's 95 % interval."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

T_95 = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""Student's t by number of worlds; beyond: 2.2, which is on the careful side."""


def mean_with_interval(values: Iterable[float]) -> tuple[float, tuple[float, float] | None]:
    """Mean, and its interval; none for a single value."""
    known = np.array([value for value in values if math.isfinite(value)], dtype=np.float64)
    if not len(known):
        return math.nan, None
    mean = float(known.mean())
    if len(known) == 1:
        return mean, None
    half = T_95.get(len(known), 2.2) * float(known.std(ddof=1)) / math.sqrt(len(known))
    return mean, (mean - half, mean + half)
