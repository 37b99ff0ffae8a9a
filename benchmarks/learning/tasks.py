"""What a contestant gets, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.learning.features import Actions, FloatArray
from ray_train.ingest import Arrays
from triton_models.runs import RunVerdict
from triton_models.surface import Surface


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a contestant gets."""

    surface: Surface
    log: Arrays
    later: Callable[[], Arrays]
    """A hold-out after the log, of half as many rows up to a cap; made for the gate only."""
    requests: Arrays
    """States to choose for."""
    scalarization_PM: FloatArray
    seed: int
    obp_python: Path | None = None
    """An interpreter that has ``sb-obp``."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What it chose: actions [n, P]."""

    chosen_nP: Actions
    verdict: RunVerdict | None = None


Contestant = Callable[[Task], Outcome]
