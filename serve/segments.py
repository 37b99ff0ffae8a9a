"""Finished spool files → Parquet segments, ``date=YYYY-MM-DD/hour=HH/<owner>-<number>.parquet``.

A reader never sees half a segment: it is made in the spool folder and put in place under its own name in
one step. On a local disk that is a rename; elsewhere the bytes go under a hidden name first and are moved,
since an upload that is interrupted may leave a short object.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from serve.spool import SpoolReader
from triton_models.files import sync_directory

ROW_GROUP_BYTES = 16 * 1024**2
COPY_BYTES = 4 * 1024**2

FLAT = ("s3", "gcs", "abfs")
"""Stores without folders: made ones would be empty objects, and need rights of their own."""


class SegmentStore(Protocol):
    """Where segments go."""

    def put(self, file: Path, segment: str) -> None:
        """Put a finished local file in place, replacing what has its name; the file may be gone afterwards.

        Raises:
            OSError: the storage does not take it now.
        """


@dataclass(frozen=True)
class LocalStore:
    """A folder on a disk of this machine, or on a shared volume."""

    root: Path

    def put(self, file: Path, segment: str) -> None:
        """Rename into place, through a hidden copy beside it where the spool is on another disk."""
        target = self.root / segment
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            file.replace(target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            _copy_beside(file, target)
        sync_directory(target.parent)


def _copy_beside(file: Path, target: Path) -> None:
    hidden = target.with_name(f".{target.name}.part")
    try:
        shutil.copyfile(file, hidden)
        with hidden.open("rb") as copy:
            os.fsync(copy.fileno())
        hidden.replace(target)
    except OSError:
        hidden.unlink(missing_ok=True)
        raise


@dataclass(frozen=True)
class RemoteStore:
    """A folder on any filesystem that pyarrow knows: ``s3://``, ``gs://``, ``hdfs://``, ``file://`` …"""

    filesystem: pafs.FileSystem
    root: str

    @classmethod
    def of_uri(cls, uri: str) -> RemoteStore:
        """Open a URI. May ask the network, for the region of a bucket for instance.

        Raises:
            OSError, ValueError: nobody there, or no such kind of filesystem.
        """
        return cls(*pafs.FileSystem.from_uri(uri))

    def put(self, file: Path, segment: str) -> None:
        """Upload under a hidden name, then move; a move on an object store is a copy that appears whole."""
        folder, name = f"{self.root.rstrip('/')}/{segment}".rsplit("/", 1)
        hidden = f"{folder}/.{name}.part"
        if self.filesystem.type_name not in FLAT:
            self.filesystem.create_dir(folder, recursive=True)
        with file.open("rb") as source, self.filesystem.open_output_stream(hidden) as output:
            shutil.copyfileobj(source, output, COPY_BYTES)
        self.filesystem.move(hidden, f"{folder}/{name}")


@dataclass(frozen=True, kw_only=True)
class Segment:
    """What was made of one spool file."""

    rows: int
    bytes: int
    torn_bytes: int


def write_segment(spool: Path, part: Path) -> Segment:
    """Put the whole batches of a spool file into a Parquet file ``part``; none if there are no rows.

    Memory: one row group at a time, whatever the size of the file. The same spool file gives the same rows
    in the same order each time.

    Raises:
        OSError: the disk; ``part`` is gone.
    """
    reader = SpoolReader(spool)
    writer: pq.ParquetWriter | None = None
    try:
        for table in _row_groups(reader):
            writer = writer or _writer(part, table.schema)
            writer.write_table(table, row_group_size=table.num_rows)
        if writer is not None:
            writer.close()
            with part.open("rb") as file:
                os.fsync(file.fileno())
    except BaseException:
        if writer is not None:
            _abandon(writer)
        part.unlink(missing_ok=True)
        raise
    size = part.stat().st_size if writer is not None else 0
    return Segment(rows=reader.rows, bytes=size, torn_bytes=reader.torn_bytes)


def _abandon(writer: pq.ParquetWriter) -> None:
    """Close a writer whose file is thrown away: its own error has been told already."""
    try:
        writer.close()
    except (OSError, pa.ArrowException):
        return


def _row_groups(batches: SpoolReader) -> Iterator[pa.Table]:
    held: list[pa.RecordBatch] = []
    size = 0
    for batch in batches:
        held.append(batch)
        size += batch.nbytes
        if size >= ROW_GROUP_BYTES:
            yield pa.Table.from_batches(held).combine_chunks()
            held, size = [], 0
    if held:
        yield pa.Table.from_batches(held).combine_chunks()


def _writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    # Numbers of embeddings do not repeat: a dictionary would only be built and given up.
    words = [field.name for field in schema if pa.types.is_string(field.type)]
    words += ["history_action.list.element"] if "history_action" in schema.names else []
    return pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=words)
