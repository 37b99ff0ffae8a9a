"""Decision logs and events, made of exploration logs, so that what ``join`` must give back is known."""

from __future__ import annotations

from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from triton_models.decision_format import decision_schema, event_schema
from triton_models.surface import Surface


def decisions_of(surface: Surface, log: pa.Table, *, plain: int = 0) -> pa.Table:
    """A decision log whose explored decisions are the rows of an exploration log.

    The last ``plain`` rows are no exploration: the value network chose them, and they have no propensity.
    """
    rows = log.num_rows
    explored = np.arange(rows) < rows - plain
    data: dict[str, Any] = {
        name: log.column(name)
        for name in log.column_names
        if not name.startswith(("reward_", "metric_", "propensity"))
    }
    propensity = pa.array(np.where(explored, log.column("propensity").to_numpy(), np.nan), from_pandas=True)
    data |= {
        "route": ["weights"] * rows,
        "arm": np.where(explored, "exploration", "knee"),
        "policy_version": np.ones(rows, dtype=np.int64),
        "source": np.where(explored, "exploration", "value_network"),
        "explored": explored,
        "propensity": propensity,
        "log_probability": np.where(explored, 1.0, 0.1),
        "surface_fingerprint": [surface.fingerprint] * rows,
    }
    return pa.table(data)


def events_of(surface: Surface, log: pa.Table, *, lag_s: float = 60.0) -> pa.Table:
    """One event per engagement of an exploration log, and one with its value per metric."""
    rows: list[dict[str, Any]] = []
    names = [f"reward_{name}" for name in surface.objectives] + [f"metric_{name}" for name in surface.metrics]
    for row in log.select(["request_id", "timestamp", *names]).to_pylist():
        for name in names:
            metric = name.startswith("metric_")
            for number in range(1 if metric else row[name]):
                rows.append(
                    {
                        "request_id": row["request_id"],
                        "timestamp": row["timestamp"] + timedelta(seconds=lag_s + number),
                        "event": name.partition("_")[2],
                        "value": row[name] if metric else None,
                        "event_id": f"{row['request_id']}-{name}-{number}",
                    }
                )
    return pa.Table.from_pylist(rows, schema=event_schema())


def as_decisions(surface: Surface, table: pa.Table) -> pa.Table:
    """The columns of a decision log, null where a table has none."""
    schema = decision_schema(surface)
    arrays = [
        table.column(item.name).combine_chunks().cast(item.type)
        if item.name in table.column_names
        else pa.nulls(table.num_rows, item.type)
        for item in schema
    ]
    return pa.table(arrays, schema=schema)


def write_decisions(surface: Surface, table: pa.Table, folder: Path, *, files: int = 3) -> Path:
    """Write a decision log as the sidecar does, the surface in each file's metadata."""
    return write_parts(as_decisions(surface, table), folder / "date=2026-01-01", files=files).parent


def write_parts(table: pa.Table, folder: Path, *, files: int = 3, row_group_rows: int = 500) -> Path:
    """Write a table as several files."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, (start, end) in enumerate(pairwise(np.linspace(0, table.num_rows, files + 1).astype(int))):
        part = table.slice(start, end - start)
        pq.write_table(part, folder / f"replica-{i:04d}.parquet", row_group_size=row_group_rows)
    return folder
