"""Reads two windows of logs for :mod:`ray_train.drift`: the one a run was trained on, and what came later."""

from __future__ import annotations

from datetime import datetime

import pyarrow as pa

from ray_train.drift import DayFigures, DayTotals, Drift, compare
from ray_train.estimators_basis import polynomial_basis
from ray_train.estimators_features import state_digest
from ray_train.ingest import encode_table
from ray_train.logs import LogFiles, discover_files, log_schema, parse_instant
from ray_train.reading import Unit, Window, in_window, list_units, read_slices
from ray_train.rows import bad_rows
from triton_models.errors import LogError
from triton_models.runs import Run
from triton_models.surface import Surface

CONTRAST_DEGREE = 2
"""Polynomials of the weights that contrasts are taken with: few, so that each is known well."""


def day_figures(
    surface: Surface, files: LogFiles, units: tuple[Unit, ...], window: Window, now: datetime
) -> DayFigures | None:
    """Daily figures of the good rows of a window; None if it has none.

    Raises:
        LogError: a file is damaged.
    """
    totals, rows = DayTotals(polynomial_basis(surface, CONTRAST_DEGREE)), 0
    names = log_schema(surface).names
    for unit in units:
        if not unit.may_overlap(window):
            continue
        for _, table in read_slices(files, unit, names):
            table = table.filter(pa.array(in_window(table, window)))
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


def drift_since(run: Run, files: LogFiles, units: tuple[Unit, ...], last: datetime, now: datetime) -> Drift:
    """Compare the run's training window with the rows of a log that are later than it.

    The training window is read from the same log if it is still there, else from where the run read it.

    Raises:
        LogError: neither has it, or the log has nothing later.
    """
    surface = run.surface
    start, end = (parse_instant(text) for text in run.manifest.data.train_window)
    then = day_figures(surface, files, units, (start, end), now)
    if then is None:
        source = discover_files(run.manifest.data.logs)
        then = day_figures(surface, source, list_units(surface, source), (start, end), now)
    later = day_figures(surface, files, units, (end, last), now)
    if then is None or later is None:
        missing = "rows of the run's training window" if then is None else "rows later than it"
        raise LogError(f"{files.source}: drift cannot be judged, there are no {missing} ({start} to {end})")
    return compare(then, later, surface.objectives)
