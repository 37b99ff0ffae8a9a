"""Bad rows, set aside with their reasons, so that a person can look at them.

::

    DIR/part-00000.parquet     the rows of one log file, its columns, and reason, source_file
    DIR/summary.json           counts by reason
"""

from __future__ import annotations

from datetime import datetime
from itertools import groupby
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ray_train.checks import LogReport
from ray_train.logs import LogFiles, log_schema
from ray_train.reading import read_slices
from ray_train.rows import Reason, bad_rows
from triton_models.errors import LogError
from triton_models.files import staged_directory, write_json
from triton_models.surface import Surface


def write_quarantine(
    surface: Surface, files: LogFiles, report: LogReport, folder: str | Path, now: datetime
) -> Path:
    """Write the bad rows of an examined log into a new folder, all of it or nothing.

    Raises:
        LogError: the folder exists already, or cannot be written.
    """
    try:
        with staged_directory(folder) as staging:
            for number, (path, _) in enumerate(groupby(report.bad_units, key=lambda unit: unit.path)):
                _write_file(surface, files, report, path, staging / f"part-{number:05d}.parquet", now)
            write_json(staging / "summary.json", {"rows": report.rows, "bad_rows": report.by_reason()})
    except FileExistsError as error:
        raise LogError(f"{folder}: exists already; name another quarantine folder or remove it") from error
    except OSError as error:
        raise LogError(f"{folder}: quarantine cannot be written ({error})") from error
    return Path(folder)


def _write_file(
    surface: Surface, files: LogFiles, report: LogReport, path: str, target: Path, now: datetime
) -> None:
    writer: pq.ParquetWriter | None = None
    try:
        for unit in (unit for unit in report.bad_units if unit.path == path):
            duplicates = report.duplicates.get((unit.path, unit.row_group), np.zeros(0, dtype=np.int64))
            for offset, table in read_slices(files, unit, log_schema(surface).names):
                reasons = bad_rows(surface, table, now)
                again = duplicates[(duplicates >= offset) & (duplicates < offset + table.num_rows)]
                reasons[again - offset] = Reason.DUPLICATE_ID
                rows = np.flatnonzero(reasons)
                bad = table.take(pa.array(rows))
                bad = bad.append_column("reason", pa.array([Reason(code).label for code in reasons[rows]]))
                bad = bad.append_column("source_file", pa.array([path] * len(rows), pa.string()))
                writer = writer or pq.ParquetWriter(target, bad.schema)
                writer.write_table(bad)
    finally:
        if writer is not None:
            writer.close()
