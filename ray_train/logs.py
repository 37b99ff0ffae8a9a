"""The exploration log on disk: its columns, its files, its time windows.

A log is a folder of Parquet files, one row per request, local or on any filesystem that pyarrow knows
(``s3://``, ``gs://``, ``hdfs://`` …). Files and folders whose names start with ``_`` or ``.`` are not
part of it. The columns follow from the control surface (:func:`log_schema`).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from triton_models.arrow_kinds import fits
from triton_models.errors import LogError
from triton_models.surface import Surface

WHOLE_DAY = timedelta(days=1)

# ------------------------------------------------------------------------------------------- columns


def log_schema(surface: Surface) -> pa.Schema:
    """The columns of a log of this surface, in the types that our own writers use."""
    state = surface.state
    fields = [
        pa.field("request_id", pa.string(), nullable=False),
        pa.field("timestamp", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("cohort", pa.string()),
        pa.field("user_embedding", pa.list_(pa.float32(), state.user_embedding), nullable=False),
    ]
    if state.history is not None:
        item = pa.list_(pa.float32(), state.history.embedding)
        fields += [
            pa.field("history_embedding", pa.list_(item), nullable=False),
            pa.field("history_action", pa.list_(pa.string()), nullable=False),
            pa.field("history_age_s", pa.list_(pa.float32()), nullable=False),
        ]
    fields += [pa.field(f"context_{name}", pa.string()) for name in state.context]
    fields += [pa.field(f"weight_{head}", pa.float64(), nullable=False) for head in surface.controlled_heads]
    fields.append(pa.field("propensity", pa.float64(), nullable=False))
    fields += [pa.field(f"reward_{name}", pa.int32(), nullable=False) for name in surface.objectives]
    fields += [pa.field(f"metric_{name}", pa.float64()) for name in surface.metrics]
    return pa.schema(fields)


def is_optional(name: str) -> bool:
    """Whether a log may lack the column: the cohort and the guardrail metrics."""
    return name == "cohort" or name.startswith("metric_")


def check_schema(surface: Surface, schema: pa.Schema, *, source: str) -> None:
    """Refuse a file whose columns do not fit the surface.

    Other types of the same kind are fine: strings of any layout, vectors as plain or fixed-size lists of
    any float, instants of any unit and zone, any integer. Columns that the surface does not know are
    ignored, but a weight or a reward that it does not know means that log and surface are two things.

    Raises:
        LogError: naming the file and the columns that are missing, of the wrong type, or not known.
    """
    problems = []
    wanted = log_schema(surface)
    missing = [n for n in wanted.names if n not in schema.names and not is_optional(n)]
    if missing:
        problems.append(f"missing {', '.join(missing)}")
    twice = sorted({n for n in schema.names if schema.names.count(n) > 1 and n in wanted.names})
    if twice:
        problems.append(f"more than one column called {', '.join(twice)}")
    problems += [
        f"{field.name} is {schema.field(field.name).type}, expected {field.type}"
        for field in wanted
        if field.name in schema.names
        and field.name not in twice
        and not fits(schema.field(field.name).type, field.type)
    ]
    unknown = [n for n in schema.names if n.startswith(("weight_", "reward_")) and n not in wanted.names]
    if unknown:
        problems.append(f"the surface does not know {', '.join(unknown)}")
    if problems:
        raise LogError(f"{source}: does not fit surface {surface.name}: {'; '.join(problems)}")


# --------------------------------------------------------------------------------------------- files


@dataclass(frozen=True, kw_only=True)
class LogFiles:
    """The Parquet files of one log, in the order of their names. Picklable."""

    source: str
    """What the person named."""
    filesystem: pafs.FileSystem
    paths: tuple[str, ...]

    def open(self, path: str) -> pq.ParquetFile:
        """Open one file.

        Raises:
            LogError: it is not there, not Parquet, or cut short.
        """
        try:
            file = pq.ParquetFile(path, filesystem=self.filesystem, memory_map=False)
            tuple(file.schema_arrow.names)
            return file
        except DAMAGE as error:
            raise unreadable(path, error) from error


DAMAGE = (pa.ArrowException, OSError, UnicodeDecodeError)
"""What comes of a damaged file; the last when a name or a text in it is looked at."""


def unreadable(path: str, error: Exception) -> LogError:
    """The one line about a file that Arrow cannot read."""
    reason = " ".join(str(error).split())[:200]
    return LogError(f"{path}: cannot be read as Parquet, is it cut short or something else? ({reason})")


def discover_files(source: str | Path, *, expected: str = "exploration logs") -> LogFiles:
    """Find the Parquet files of a log: a folder, searched through, or one file.

    Args:
        source: path or URI.
        expected: what should be there, for messages.

    Raises:
        LogError: nothing is there, or no Parquet file is in it.
    """
    text = str(source)
    try:
        if "://" in text:
            filesystem, root = pafs.FileSystem.from_uri(text)
        else:
            filesystem, root = pafs.LocalFileSystem(), str(Path(text).absolute())
        info = filesystem.get_file_info(root)
        if info.type == pafs.FileType.NotFound:
            raise LogError(f"{text}: no such file or folder; expected a folder of Parquet files")
        if info.type == pafs.FileType.File:
            return LogFiles(source=text, filesystem=filesystem, paths=(info.path,))
        found = filesystem.get_file_info(pafs.FileSelector(root, recursive=True))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise LogError(f"{text}: cannot be listed ({' '.join(str(error).split())[:200]})") from error
    paths = sorted(
        item.path for item in found if item.type == pafs.FileType.File and _is_part(root, item.path)
    )
    if not paths:
        raise LogError(f"{text}: holds no *.parquet file; expected {expected} in Parquet")
    return LogFiles(source=text, filesystem=filesystem, paths=tuple(paths))


def _is_part(root: str, path: str) -> bool:
    parts = Path(path).relative_to(root).parts if path.startswith(root) else Path(path).parts
    return path.endswith((".parquet", ".pq")) and not any(part.startswith(("_", ".")) for part in parts)


# ------------------------------------------------------------------------------------------- windows


@dataclass(frozen=True, kw_only=True)
class Split:
    """Training window ``[train_start, holdout_start)`` and hold-out ``[holdout_start, holdout_end)``."""

    train_start: datetime
    holdout_start: datetime
    holdout_end: datetime
    by_share: bool = False
    """Whether the log was too short for the days asked for, so that it was split by share."""

    @property
    def train_window(self) -> tuple[str, str]:
        """Start (inclusive) and end (exclusive) of training, ISO 8601."""
        return self.train_start.isoformat(), self.holdout_start.isoformat()

    @property
    def holdout_window(self) -> tuple[str, str]:
        """Start (inclusive) and end (exclusive) of the hold-out, ISO 8601."""
        return self.holdout_start.isoformat(), self.holdout_end.isoformat()


def split_by_time(
    first: datetime, last: datetime, *, train_days: float = 14, holdout_days: float = 7
) -> Split:
    """Count days back from the end of the log; a log shorter than asked for is split by the same shares.

    Args:
        first: earliest timestamp in the log, in UTC.
        last: latest one; both are part of the log.
        train_days: length of the training window, > 0.
        holdout_days: length of the hold-out after it, > 0.

    Raises:
        LogError: all rows have one timestamp, so that no split by time is possible.
    """
    end = last + timedelta(microseconds=1)
    if last <= first:
        raise LogError(f"all rows are from {first.isoformat()}; a split by time needs more than one instant")
    holdout, train = timedelta(days=holdout_days), timedelta(days=train_days)
    # The last day is seldom full: 20.9 days of rows are the 21 days asked for.
    slack = min(WHOLE_DAY, (holdout + train) / 20)
    if last - first <= max(holdout + train - slack, holdout):
        share = holdout / (holdout + train)
        return Split(
            train_start=first,
            holdout_start=end - (end - first) * share,
            holdout_end=end,
            by_share=True,
        )
    start = max(first, end - holdout - train)
    return Split(train_start=start, holdout_start=end - holdout, holdout_end=end)


def parse_instant(text: str) -> datetime:
    """An ISO 8601 instant; without a zone it is UTC.

    Raises:
        LogError: it is no such instant.
    """
    try:
        instant = datetime.fromisoformat(text)
    except ValueError as error:
        raise LogError(f"{text!r} is not an ISO 8601 instant such as 2026-05-01T00:00:00+00:00") from error
    return instant.replace(tzinfo=UTC) if instant.tzinfo is None else instant.astimezone(UTC)


def as_datetime(value: Any) -> datetime:
    """``datetime64`` in UTC, of the years 1 to 9999 → aware datetime."""
    return datetime.fromtimestamp(0, UTC) + timedelta(microseconds=int(value.astype("int64")))
