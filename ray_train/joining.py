"""Decisions + events → an exploration log, bucket by bucket.

Only explored decisions with everything that a log needs go into it; the others are counted by reason. One
file per bucket, rows in order of time, written into a folder that appears when all of it is there.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from ray_train.attribution import Attributed, Attribution, DecisionFate, EventFate, attribute
from ray_train.decisions import DECISION_COUNT, EVENT_COUNT, Reader, Source, counted
from ray_train.logs import log_schema
from ray_train.partitions import BUCKET_BYTES, Bucket, bucket_count, joined, tables
from ray_train.rows import Reason, bad_rows
from triton_models.errors import LogError
from triton_models.files import staged_directory
from triton_models.surface import Surface

SUMMARY = "_join.json"
"""The summary in the log's folder: where it is, the log is whole. Readers of Parquet skip such names."""

ROW_GROUP_ROWS = 8_192
NOT_EXPLORED = "not_explored"
LEFT_OUT = "left_out_"
IN_LOG = "in_the_log"


@dataclass(kw_only=True)
class JoinCounts:
    """What became of every decision and every event."""

    decisions: Counter[str] = field(default_factory=Counter)
    """By :class:`DecisionFate`, the kept ones by what became of them then."""
    events: Counter[str] = field(default_factory=Counter)
    """By :class:`EventFate`."""
    rewards: Counter[str] = field(default_factory=Counter)
    """Rows of the log with a reward, by objective."""
    files: int = 0

    def add(self, other: JoinCounts) -> None:
        """Add another bucket's."""
        self.decisions.update(other.decisions)
        self.events.update(other.events)
        self.rewards.update(other.rewards)
        self.files += other.files

    @property
    def rows(self) -> int:
        """Rows of the log."""
        return self.decisions[IN_LOG]


def payload(surface: Surface) -> dict[str, pa.DataType]:
    """What an explored decision carries to the log: vectors as plain lists, whose nulls take no room."""
    outcomes = ("reward_", "metric_")
    return {
        item.name: _plain(item.type)
        for item in log_schema(surface)
        if item.name not in ("request_id", "timestamp") and not item.name.startswith(outcomes)
    }


def _plain(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind):
        return pa.list_(_plain(kind.value_type))
    return kind


@dataclass(frozen=True, kw_only=True)
class WriteLog:
    """One bucket → one file of the log. Picklable."""

    surface: Surface
    rules: Attribution
    filesystem: pafs.FileSystem
    folder: str

    def __call__(self, bucket: Bucket) -> pa.Table:
        """Write the bucket's rows, and say what was counted: one row, JSON."""
        found = attribute(self.surface, self.rules, bucket.decisions, bucket.events)
        log, counts = log_rows(self.surface, self.rules, found)
        counts.decisions.update(counted(bucket.counts, DECISION_COUNT))
        counts.events.update(counted(bucket.counts, EVENT_COUNT))
        if log.num_rows:
            counts.files = 1
            path = f"{self.folder}/part-{bucket.number:05d}.parquet"
            # A task may run twice: each writes its own file, the same, and the last rename stays.
            staged = f"{self.folder}/.{uuid4().hex}"
            pq.write_table(log, staged, filesystem=self.filesystem, row_group_size=ROW_GROUP_ROWS)
            self.filesystem.move(staged, path)
        return pa.table({"counts": [json.dumps(vars(counts))]})


def log_rows(surface: Surface, rules: Attribution, found: Attributed) -> tuple[pa.Table, JoinCounts]:
    """The rows of the log among attributed decisions, in order of time, and what became of the others."""
    schema = log_schema(surface)
    explored = np.asarray(found.decisions.column("explored"), dtype=bool)
    table = _with_outcomes(surface, found).select(schema.names).filter(pa.array(explored))
    reasons = bad_rows(surface, table, rules.as_of)
    good = reasons == Reason.GOOD
    log = table.filter(pa.array(good)).sort_by([("timestamp", "ascending"), ("request_id", "ascending")])
    log = pa.table([_cast(log.column(item.name), item.type) for item in schema], schema=schema)
    counts = JoinCounts(decisions=found.decision_counts.copy(), events=found.event_counts.copy())
    del counts.decisions[DecisionFate.KEPT.value]
    counts.decisions[NOT_EXPLORED] = int((~explored).sum())
    counts.decisions[IN_LOG] = log.num_rows
    for code in np.unique(reasons[~good]):
        counts.decisions[LEFT_OUT + Reason(code).label] = int((reasons == code).sum())
    used = np.zeros(len(explored), dtype=bool)
    used[np.flatnonzero(explored)[good]] = True
    counts.events[EventFate.COUNTED.value] = int(found.events_n[used].sum())
    counts.events[NOT_EXPLORED] = int(found.events_n[~explored].sum())
    counts.events[LEFT_OUT + "with_decision"] = int(found.events_n[explored & ~used].sum())
    for m, name in enumerate(surface.objectives):
        counts.rewards[name] = int((found.rewards_nM[used, m] > 0).sum())
    for part in (counts.decisions, counts.events):
        for name in [name for name, number in part.items() if not number]:
            del part[name]
    return log, counts


def _with_outcomes(surface: Surface, found: Attributed) -> pa.Table:
    table = found.decisions
    for m, name in enumerate(surface.objectives):
        column = pa.array(found.rewards_nM[:, m].astype(np.int32))
        table = table.append_column(f"reward_{name}", column)
    for k, name in enumerate(surface.metrics):
        table = table.append_column(f"metric_{name}", pa.array(found.metrics_nK[:, k], from_pandas=True))
    return table


def _cast(column: pa.ChunkedArray, kind: pa.DataType) -> pa.Array:
    array = column.combine_chunks()
    return (pa.concat_arrays(array.chunks) if isinstance(array, pa.ChunkedArray) else array).cast(kind)


def join(
    *,
    surface: Surface,
    rules: Attribution,
    decisions: Source,
    events: Source,
    out: str,
    bucket_bytes: int = BUCKET_BYTES,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> JoinCounts:
    """Write the exploration log of closed, explored decisions on the running Ray cluster.

    Args:
        surface: of decisions and log.
        rules: window, limits, metric rules.
        decisions: the decision log.
        events: the events.
        out: new folder, local or a URI.
        bucket_bytes: how much of the input a task should hold at once.
        progress: told how many buckets are done, of how many.

    Returns:
        What was counted.

    Raises:
        LogError: a file is damaged, nothing is to be written, or ``out`` exists.
        SurfaceMismatchError: a decision was made under another surface.
    """
    buckets = bucket_count(decisions, events, bucket_bytes=bucket_bytes)
    reader = Reader(
        surface=surface,
        decisions=decisions,
        events=events,
        payload=payload(surface),
        payload_if_explored=True,
        buckets=buckets,
    )
    total = JoinCounts()
    with staged_log(out) as (filesystem, folder):
        write = WriteLog(surface=surface, rules=rules, filesystem=filesystem, folder=folder)
        done = 0
        for table in tables(joined(reader, write)):
            for text in table.column("counts").to_pylist():
                total.add(JoinCounts(**{k: _counter(v) for k, v in json.loads(text).items()}))
                done += 1
                progress(done, buckets)
        if not total.rows:
            raise LogError(f"no explored decision is closed and complete: {_described(total)}")
        summary = json.dumps(_summary(surface, rules, decisions, events, total), indent=2) + "\n"
        with filesystem.open_output_stream(f"{folder}/{SUMMARY}") as stream:
            stream.write(summary.encode())
    return total


def _counter(value: Any) -> Any:
    return Counter(value) if isinstance(value, dict) else value


def _described(counts: JoinCounts) -> str:
    return ", ".join(f"{name} {number:,}" for name, number in counts.decisions.items()) or "there is none"


def _summary(
    surface: Surface, rules: Attribution, decisions: Source, events: Source, counts: JoinCounts
) -> dict[str, Any]:
    return {
        "version": 1,
        "surface_fingerprint": surface.fingerprint,
        "decisions": {"source": decisions.files.source, "rows": decisions.rows},
        "events": {"source": events.files.source, "rows": events.rows},
        "attribution": {
            **rules.model_dump(mode="json", exclude={"window", "late_limit", "metrics"}),
            "window_s": rules.window.total_seconds(),
            "late_limit_s": rules.late_limit.total_seconds(),
            "metrics": {name: rules.rule(name).value for name in surface.metrics},
        },
        "rows": counts.rows,
        "files": counts.files,
        "decision_counts": dict(sorted(counts.decisions.items())),
        "event_counts": dict(sorted(counts.events.items())),
        "rows_with_reward": dict(counts.rewards),
        "next_after": rules.next_after.isoformat(),
    }


# ---------------------------------------------------------------------------------------- the folder


@contextmanager
def staged_log(out: str) -> Iterator[tuple[pafs.FileSystem, str]]:
    """A folder to fill that takes the name ``out`` when the block succeeds, and else leaves nothing.

    On a filesystem that cannot rename a folder (object stores) the files appear one by one at the end, the
    summary last.

    Yields:
        The filesystem and the folder's path on it.

    Raises:
        LogError: ``out`` exists, or cannot be written.
    """
    try:
        filesystem, final = (
            pafs.FileSystem.from_uri(out.rstrip("/"))
            if "://" in out
            else (pafs.LocalFileSystem(), str(Path(out).absolute()))
        )
        if filesystem.get_file_info(final).type != pafs.FileType.NotFound:
            raise LogError(f"{out}: exists already; name another folder or remove it")
        staging = (
            _staged_local(final) if filesystem.type_name == "local" else _staged_remote(filesystem, final)
        )
        with staging as folder:
            yield filesystem, folder
    except (OSError, pa.ArrowException) as error:
        raise LogError(f"{out}: cannot be written ({' '.join(str(error).split())[:200]})") from error


@contextmanager
def _staged_local(final: str) -> Iterator[str]:
    with staged_directory(final) as folder:
        yield str(folder)


@contextmanager
def _staged_remote(filesystem: pafs.FileSystem, final: str) -> Iterator[str]:
    parent, _, name = final.rpartition("/")
    folder = f"{parent}/_{name}.{uuid4().hex}"
    try:
        filesystem.create_dir(folder)
        yield folder
        try:
            filesystem.move(folder, final)
        except (OSError, NotImplementedError, pa.ArrowException):
            filesystem.create_dir(final)
            found = filesystem.get_file_info(pafs.FileSelector(folder))
            for item in sorted(found, key=lambda item: item.base_name == SUMMARY):
                filesystem.move(item.path, f"{final}/{item.base_name}")
            filesystem.delete_dir(folder)
    except BaseException:
        if filesystem.get_file_info(folder).type != pafs.FileType.NotFound:
            filesystem.delete_dir(folder)
        raise
