"""One cell of the benchmark: one learner on one log, valued against the truth; kept as one JSON file.

    captured = (learned - best static) / (best request-level - best static)

in expected scalarized reward on requests after the log; *best static* and *best request-level* are the
truth's, not estimates. Cells that lie there already are not computed again.

Shape legend: n requests, P scalarizations, M objectives.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.feed.truth import Truth
from benchmarks.learning.contestants import contestant, holdout_rows
from benchmarks.learning.tasks import Task
from benchmarks.learning.worlds import TRAFFIC, load_world, log_arrays, rows_after, truth_of
from ray_train.ingest import Arrays
from triton_models.errors import BenchmarkError
from triton_models.files import write_json

ALPHAS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
REQUESTS = 4000

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What is run."""

    feed: str
    seed: int
    rows: int
    learner: str

    def file(self, folder: Path) -> Path:
        """Where its figures lie."""
        return folder / "cells" / f"{self.feed}-{self.seed}-{self.rows}-{self.learner}.json"


def scalarizations() -> FloatArray:
    """λ = (1 - α, α), [P, 2]."""
    alpha_P = np.array(ALPHAS)
    return np.stack([1.0 - alpha_P, alpha_P], axis=1)


def run_cell(cell: Cell, folder: Path, *, obp_python: Path | None = None) -> dict[str, Any]:
    """The figures of a cell, computed unless they lie there.

    Args:
        cell: what to run.
        folder: where cells and truths are kept.
        obp_python: an interpreter that has ``sb-obp``, for its learners.
    """
    file = cell.file(folder)
    if file.exists():
        return read_cell(file)
    world = load_world(cell.feed, cell.seed)
    requests, truth = truth_of(cell.feed, cell.seed, REQUESTS, folder / "truth")
    task = Task(
        surface=world.surface,
        log=_log(cell.feed, cell.seed, cell.rows),
        later=partial(rows_after, world, TRAFFIC + REQUESTS, holdout_rows(cell.rows)),
        requests=requests,
        scalarization_PM=scalarizations(),
        seed=cell.seed,
        obp_python=obp_python,
    )
    began, began_cpu = time.monotonic(), _cpu_s()
    outcome = contestant(cell.learner)(task)
    seconds, cpu_s = time.monotonic() - began, _cpu_s() - began_cpu
    captured_P = captured(truth, outcome.chosen_nP)
    figures = {
        "feed": cell.feed,
        "seed": cell.seed,
        "rows": cell.rows,
        "learner": cell.learner,
        "captured": captured_P.tolist(),
        "mean": float(captured_P.mean()),
        "references": references(truth),
        "seconds": round(seconds, 1),
        "cpu_s": round(cpu_s, 1),
        "load": round(os.getloadavg()[0], 1),
        "verdict": outcome.verdict.model_dump(mode="json") if outcome.verdict else None,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, figures)
    return figures


@lru_cache(maxsize=1)
def _log(feed: str, seed: int, rows: int) -> Arrays:
    """One for all learners, which follow each other on it."""
    return log_arrays(load_world(feed, seed), rows)


def _cpu_s() -> float:
    """Of this process and of the children that it waited for."""
    return sum(os.times()[:4])


def read_cell(file: Path) -> dict[str, Any]:
    """Figures on disk.

    Raises:
        BenchmarkError: the file is damaged.
    """
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BenchmarkError(f"{file}: cannot be read ({error}); remove it to run the cell again") from error
    return found


def captured(truth: Truth, chosen_nP: npt.NDArray[np.integer[Any]]) -> FloatArray:
    """Share of the achievable gain, per scalarization."""
    q_nAM = truth.action_values_nAR[:, :, : truth.objectives]
    rows = np.arange(len(q_nAM))
    found = []
    for p, lam in enumerate(scalarizations()):
        value = float((q_nAM[rows, chosen_nP[:, p]] @ lam).mean())
        static, best = _bounds(truth, lam)
        found.append((value - static) / (best - static))
    return np.array(found)


def references(truth: Truth) -> dict[str, list[float]]:
    """Captured share of production and of uniform weights, and the gain as a share of production."""
    m, found = truth.objectives, {"production": [], "uniform": [], "gain": []}  # type: ignore[var-annotated]
    for lam in scalarizations():
        static, best = _bounds(truth, lam)
        production = float(truth.production[:m] @ lam)
        uniform = float(truth.static[:, :m].mean(axis=0) @ lam)
        found["production"].append((production - static) / (best - static))
        found["uniform"].append((uniform - static) / (best - static))
        found["gain"].append((best - static) / production)
    return found


def _bounds(truth: Truth, lam: FloatArray) -> tuple[float, float]:
    m = truth.objectives
    return float(truth.static[truth.best_static(lam), :m] @ lam), float(truth.best(lam)[:m] @ lam)
