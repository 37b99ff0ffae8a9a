"""Decisions and events of the same requests brought together, whatever their size (Ray Data).

Every task reads a few row groups and gives each row the hash bucket of its request id; Ray Data's shuffle
brings the rows of a bucket into one task, spilling to disk what the object store cannot hold. A bucket is
sized to fit a task, so memory does not grow with the input. Which rows share a bucket depends on the ids and
the number of buckets alone, and that on the size of the input: not on the cluster, nor on the order of files.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_train.cluster import root_cause
from ray_train.decisions import DECISION, EVENT, Reader, Source
from triton_models.errors import PutsError

if TYPE_CHECKING:
    import ray.data

BUCKET_BYTES = 32 << 20
"""Uncompressed Parquet bytes that a bucket aims at; a task may get a few buckets, one after the other."""

TASK_BYTES = 16 << 20
"""What one reading task aims at."""

BLOCK_BYTES = 32 << 20
"""Size of the blocks that the shuffle works on; Ray Data's default is a gigabyte."""


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """All rows of some requests."""

    number: int
    decisions: pa.Table
    events: pa.Table
    counts: pa.Table
    """Transport rows that only count."""


Finish = Callable[[Bucket], pa.Table]
"""What is made of a bucket; picklable, and all its tables have one schema."""


def bucket_count(*sources: Source, bucket_bytes: int = BUCKET_BYTES) -> int:
    """How many buckets the input needs; a function of the input only."""
    return max(1, ceil(sum(source.size_bytes for source in sources) / bucket_bytes))


@dataclass(frozen=True, kw_only=True)
class _Spread:
    """Task numbers → transport rows."""

    reader: Reader
    tasks: tuple[tuple[tuple[bool, int], ...], ...]
    """Per task: (is it a decision unit, number of the unit)."""

    def __call__(self, batch: dict[str, npt.NDArray[Any]]) -> Iterator[pa.Table]:
        for task in batch["id"]:
            for decision, number in self.tasks[int(task)]:
                yield from self.reader.decision_rows(number) if decision else self.reader.event_rows(number)


@dataclass(frozen=True, kw_only=True)
class _Gather:
    """Transport rows of some buckets → what is made of each."""

    finish: Finish

    def __call__(self, rows: pa.Table) -> Iterator[pa.Table]:
        number = rows.column("bucket")
        for bucket in sorted(pc.unique(number).to_pylist()):
            own = rows.filter(pc.equal(number, bucket))
            kind = own.column("kind")
            yield self.finish(
                Bucket(
                    number=bucket,
                    decisions=own.filter(pc.equal(kind, DECISION)),
                    events=own.filter(pc.equal(kind, EVENT)),
                    counts=own.filter(pc.greater(kind, EVENT)),
                )
            )


def joined(reader: Reader, finish: Finish) -> ray.data.Dataset:
    """A lazy data set of what ``finish`` makes of every bucket, on the running cluster."""
    import ray.data

    tasks = _tasks(reader)
    # What fails on a worker is raised on the driver; Ray Data would print it as well, at length.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    data: ray.data.Dataset = ray.data.range(len(tasks), override_num_blocks=len(tasks))
    data.context.enable_progress_bars = False
    data.context.target_max_block_size = BLOCK_BYTES
    data.context.shuffle_input_batch_bytes = BLOCK_BYTES
    spread = data.map_batches(
        _Spread(reader=reader, tasks=tasks), batch_size=None, batch_format="numpy", zero_copy_batch=True
    )
    return regrouped(spread, "bucket", reader.buckets).map_batches(
        _Gather(finish=finish), batch_size=None, batch_format="pyarrow", zero_copy_batch=True
    )


def regrouped(data: ray.data.Dataset, key: str, parts: int) -> ray.data.Dataset:
    """Rows of equal key in one block."""
    return data.repartition(parts, keys=[key])


def tables(data: ray.data.Dataset) -> Iterator[pa.Table]:
    """The blocks of a data set, as they are ready.

    Raises:
        PutsError: what a task raised on purpose.
    """
    try:
        yield from data.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    except Exception as error:
        cause = root_cause(error)
        if isinstance(cause, PutsError):  # Ray Data adds lines of advice to the message
            raise type(cause)(str(cause).partition("\n")[0]) from error
        raise


def _tasks(reader: Reader) -> tuple[tuple[tuple[bool, int], ...], ...]:
    tasks: list[tuple[tuple[bool, int], ...]] = []
    for decision, source in ((True, reader.decisions), (False, reader.events)):
        task: list[tuple[bool, int]] = []
        size = 0
        for number, unit in enumerate(source.units):
            task.append((decision, number))
            size += unit.size_bytes
            if size >= TASK_BYTES:
                tasks.append(tuple(task))
                task, size = [], 0
        if task:
            tasks.append(tuple(task))
    return tuple(tasks)
