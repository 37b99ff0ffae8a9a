"""Cells, grouped; means over seeds with their intervals; what the cells say about policies in truth.

Everything that a report needs is in a cell. With captured share ``c``, production's own share ``c_0`` and the
gain ``g = (best - static) / production``, a policy's value against the best static vector is ``c g``, and
against production ``(c - c_0) g``, both as shares of production's value.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.learning.cells import read_cell
from triton_models.errors import BenchmarkError
from triton_models.runs import RunVerdict

Cells = list[dict[str, Any]]
Groups = dict[tuple[int, str], Cells]
"""Cells of one feed by rows and learner."""

T_95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}
"""Student's t for a 95 % interval, by number of seeds; beyond: 2."""


def read_cells(folder: Path) -> dict[str, Groups]:
    """All cells of a folder, by feed.

    Raises:
        BenchmarkError: there is no cell, or a damaged one.
    """
    feeds: dict[str, Groups] = defaultdict(lambda: defaultdict(list))
    for file in sorted((folder / "cells").glob("*.json")):
        cell = read_cell(file)
        feeds[cell["feed"]][cell["rows"], cell["learner"]].append(cell)
    if not feeds:
        raise BenchmarkError(f"{folder}: holds no cells of the learning benchmark")
    return feeds


def mean_and_interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean over seeds and half of its 95 % interval (Student); NaN for one seed."""
    if len(values) < 2:
        return float(values[0]), float("nan")
    half = T_95.get(len(values), 2.0) * float(np.std(values, ddof=1)) / len(values) ** 0.5
    return float(np.mean(values)), half


def spread(values: Sequence[float], digits: int = 2) -> str:
    """``mean ± half``; the mean alone for one seed."""
    mean, half = mean_and_interval(values)
    return f"{mean:.{digits}f}" + (f" ± {half:.{digits}f}" if np.isfinite(half) else "")


def by_seed(cells: Iterable[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Cells of one learner and size, in order of the seed."""
    return {cell["seed"]: cell for cell in sorted(cells, key=lambda cell: int(cell["seed"]))}


def one_cell_per_seed(groups: Groups) -> Cells:
    """Any cell of every seed: for what belongs to the world and not to the learner."""
    return list(by_seed(cell for cells in groups.values() for cell in cells).values())


def paired_differences(one: Cells, other: Cells) -> list[float]:
    """Captured share of one learner less the other's, over the seeds that both have."""
    first, second = by_seed(one), by_seed(other)
    return [first[seed]["mean"] - second[seed]["mean"] for seed in first if seed in second]


def against_static(cell: dict[str, Any]) -> float:
    """Value less the best static vector's, mean over λ, as a share of production's."""
    return float(np.mean(np.multiply(cell["captured"], cell["references"]["gain"])))


def against_production(cell: dict[str, Any]) -> float:
    """Value less production's, mean over λ, as a share of production's."""
    ahead = np.subtract(cell["captured"], cell["references"]["production"])
    return float(np.mean(ahead * np.array(cell["references"]["gain"])))


def passed(cell: dict[str, Any]) -> bool:
    """Whether the gate lets this policy be exported without being forced."""
    # Not validated: cells of an older gate lack fields, but their level says what they decided.
    return cell["verdict"] is not None and RunVerdict.model_construct(**cell["verdict"]).passed
