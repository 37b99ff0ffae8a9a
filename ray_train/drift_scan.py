"""Reads two windows of logs for :mod:`ray_train.drift`: the one a run was trained on, and what came later.

``fit`` leaves the daily figures of its training window in the run (``reference.json``), so that what came
later can be compared with it when those logs are long gone. The ranker's scores are in no log: what became of
them only the sidecar sees (``serve/drift.py``).
"""

from __future__ import annotations

import json
import math
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa

from ray_train.drift import DayFigures, DayTotals, Drift, compare
from ray_train.estimators_basis import polynomial_basis
from ray_train.estimators_features import state_digest
from ray_train.ingest import encode_table
from ray_train.logs import LogFiles, discover_files, log_schema, parse_instant
from ray_train.reading import Unit, Window, in_window, list_units, read_slices
from ray_train.rows import bad_rows
from triton_models.errors import LogError, RunError
from triton_models.files import write_json
from triton_models.runs import Run
from triton_models.surface import Surface

CONTRAST_DEGREE = 2
"""Polynomials of the weights that contrasts are taken with: few, so that each is known well."""

REFERENCE = "reference.json"
"""Name of the training window's figures inside a run's folder."""
REFERENCE_ROWS = 300_000
"""About so many rows of the training window make them, evenly over it."""
LEAST_UNITS = 200
"""Row groups that are read of a larger log, at least: every day is among them."""


def day_figures(
    surface: Surface,
    files: LogFiles,
    units: tuple[Unit, ...],
    window: Window,
    now: datetime,
    *,
    most_rows: float = math.inf,
) -> DayFigures | None:
    """Daily figures of the good rows of a window; None if it has none.

    Args:
        most_rows: about so many rows are looked at: every so many row groups, and rows in them.

    Raises:
        LogError: a file is damaged.
    """
    totals, rows = DayTotals(polynomial_basis(surface, CONTRAST_DEGREE)), 0
    names = log_schema(surface).names
    wanted = [unit for unit in units if unit.may_overlap(window)]
    excess = max(1.0, sum(unit.rows for unit in wanted) / most_rows)
    skip = max(1, min(int(excess), len(wanted) // LEAST_UNITS))
    every = max(1, round(excess / skip))
    for unit in wanted[::skip]:
        for _, table in read_slices(files, unit, names):
            table = table.filter(pa.array(in_window(table, window)))
            table = table.take(np.arange(0, table.num_rows, every)) if every > 1 else table
            table = table.filter(pa.array(bad_rows(surface, table, now) == 0))
            if not table.num_rows:
                continue
            arrays, rows = encode_table(surface, table), rows + table.num_rows
            totals.add(
                arrays["timestamp"].astype("datetime64[D]"),
                arrays["action"],
                arrays["propensity"],
                arrays["rewards"],
                state_digest(surface, arrays),
            )
    return totals.figures() if rows else None


def write_reference(
    folder: Path, surface: Surface, files: LogFiles, units: tuple[Unit, ...], window: Window, now: datetime
) -> None:
    """Keep the figures of the training window in a run's folder; nothing where it has no good rows.

    Raises:
        LogError: a file is damaged.
    """
    figures = day_figures(surface, files, units, window, now, most_rows=REFERENCE_ROWS)
    if figures is not None:
        write_json(folder / REFERENCE, {"contrast_degree": CONTRAST_DEGREE, "days": figures.to_dict()})


def read_reference(folder: Path) -> DayFigures | None:
    """The figures that ``fit`` left; None: an older run has none, or others than these.

    Raises:
        RunError: the file is damaged.
    """
    file = folder / REFERENCE
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        if data["contrast_degree"] != CONTRAST_DEGREE:
            return None
        return DayFigures.from_dict(data["days"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise RunError(f"{file}: cannot be read ({error}); remove it to compare with the logs") from error


def drift_since(run: Run, files: LogFiles, units: tuple[Unit, ...], last: datetime, now: datetime) -> Drift:
    """Compare the run's training window with the rows of a log that are later than it.

    The training window is what ``fit`` kept of it; for older runs it is read from the same log if it is still
    there, else from where the run read it.

    Raises:
        LogError: neither has it, or the log has nothing later.
        RunError: what ``fit`` kept is damaged.
    """
    surface = run.surface
    start, end = (parse_instant(text) for text in run.manifest.data.train_window)
    then = read_reference(run.path)
    if then is None:
        then = day_figures(surface, files, units, (start, end), now)
    if then is None:
        source = discover_files(run.manifest.data.logs)
        then = day_figures(surface, source, list_units(surface, source), (start, end), now)
    later = day_figures(surface, files, units, (end, last), now)
    if then is None or later is None:
        missing = "rows of the run's training window" if then is None else "rows later than it"
        raise LogError(f"{files.source}: drift cannot be judged, there are no {missing} ({start} to {end})")
    return compare(then, later, surface.objectives)
