"""The local spool of the decision log: Arrow IPC *stream* files that survive ``kill -9``.

A record batch is appended with plain ``write`` calls: once they return, the bytes are the kernel's and
outlive the process. What a process was writing when it died is a torn tail; an IPC stream is read batch by
batch up to there, so the tail costs its own batch and nothing else.

Replicas of a node share the folder. A file belongs to the process that holds the ``flock`` on
``<owner>.lock``; the kernel gives the lock back when the process is gone, however it went. Whoever gets
hold of a dead owner's lock may finish its files, and nobody else can meanwhile. The segment made from a
file has a name that follows from the file's, and the file is removed only after the segment is in place, so
that finishing twice writes the same segment twice, and never a row twice.
"""

from __future__ import annotations

import fcntl
import os
import re
import socket
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pyarrow as pa

from triton_models.files import sync_directory

SUFFIX = ".arrows"
LOCK_SUFFIX = ".lock"
PART_SUFFIX = ".parquet.part"
"""A segment in the making, beside the spool file that it is made from."""

_NAME = re.compile(
    r"(?P<owner>[A-Za-z0-9][A-Za-z0-9_]*)-(?P<number>\d{6,})"
    r"\.(?P<date>\d{4}-\d{2}-\d{2})T(?P<hour>\d{2})\.arrows"
)


def new_owner() -> str:
    """A name for this process that no other process has, here or on another node."""
    host = re.sub(r"[^A-Za-z0-9]", "", socket.gethostname())[:24] or "host"
    return f"{host}_{os.getpid()}_{uuid.uuid4().hex[:10]}"


def hour_of(timestamp_us: int) -> str:
    """``YYYY-MM-DDTHH`` in UTC."""
    return time.strftime("%Y-%m-%dT%H", time.gmtime(timestamp_us // 1_000_000))


@dataclass(frozen=True, order=True)
class SpoolName:
    """What the name of a spool file says."""

    owner: str
    number: int
    hour: str
    """``YYYY-MM-DDTHH``."""

    @property
    def file(self) -> str:
        """Name of the spool file."""
        return f"{self.owner}-{self.number:06d}.{self.hour}{SUFFIX}"

    @property
    def segment(self) -> str:
        """Path of its segment inside the log's folder."""
        date, hour = self.hour.split("T")
        return f"date={date}/hour={hour}/{self.owner}-{self.number:06d}.parquet"

    @classmethod
    def parse(cls, name: str) -> Self | None:
        """Read a file's name; None: it is not a spool file."""
        match = _NAME.fullmatch(name)
        if match is None:
            return None
        return cls(match["owner"], int(match["number"]), f"{match['date']}T{match['hour']}")


class Ownership:
    """The lock that says an owner is alive. Released by :meth:`release`, or by the process's end."""

    def __init__(self, folder: Path, owner: str, descriptor: int) -> None:
        self.owner = owner
        self._path = folder / f"{owner}{LOCK_SUFFIX}"
        self._descriptor = descriptor

    @classmethod
    def claim(cls, folder: Path, owner: str) -> Ownership | None:
        """Take an owner's lock; None: somebody else holds it."""
        path = folder / f"{owner}{LOCK_SUFFIX}"
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Somebody may have removed the file between the two calls: a lock that nobody can find.
                if os.stat(path).st_ino == os.fstat(descriptor).st_ino:  # noqa: PTH116
                    return cls(folder, owner, descriptor)
            except FileNotFoundError:
                pass
            except BlockingIOError:
                os.close(descriptor)
                return None
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)

    def release(self, *, done: bool) -> None:
        """Give the lock back; ``done``: no file of the owner is left, so the lock's file goes, too."""
        if done:
            self._path.unlink(missing_ok=True)
        os.close(self._descriptor)


class SpoolFile:
    """One file being written. Appends whole batches or nothing."""

    def __init__(self, folder: Path, name: SpoolName, schema: pa.Schema) -> None:
        self.name = name
        self.path = folder / name.file
        self.rows = 0
        self.size = 0
        self.broken = False
        """A failed append could not be taken back: nothing may follow it."""
        self.marked = False
        """Whether it waits to be forced to the disk."""
        self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
        try:
            self._write(schema.serialize())
        except BaseException:
            self.close()
            self.path.unlink(missing_ok=True)
            raise

    def append(self, batch: pa.RecordBatch) -> None:
        """Append one batch.

        Raises:
            OSError: nothing of the batch is in the file, or what is makes its torn tail (:attr:`broken`).
        """
        self._write(batch.serialize())
        self.rows += batch.num_rows

    def _write(self, data: pa.Buffer) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._descriptor, view) :]
        except OSError:
            self._take_back()
            raise
        self.size += data.size

    def _take_back(self) -> None:
        try:
            os.ftruncate(self._descriptor, self.size)
            os.lseek(self._descriptor, self.size, os.SEEK_SET)
        except OSError:
            self.broken = True

    def sync(self) -> None:
        """Make what was appended survive a crash of the machine, too. From any thread, closed or not.

        Raises:
            OSError: the disk refuses, or the file is a segment by now.
        """
        descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        sync_directory(self.path.parent)

    def close(self) -> None:
        """Close the file; it stays until its segment is in place."""
        os.close(self._descriptor)


def spool_files(folder: Path) -> list[SpoolName]:
    """All spool files of a folder, everybody's, in order."""
    return sorted(name for entry in os.scandir(folder) if (name := SpoolName.parse(entry.name)) is not None)


def lock_owners(folder: Path) -> set[str]:
    """Owners that have a lock file, alive or dead."""
    names = (entry.name for entry in os.scandir(folder) if entry.name.endswith(LOCK_SUFFIX))
    return {name.removesuffix(LOCK_SUFFIX) for name in names}


def folder_bytes(folder: Path) -> int:
    """Bytes of all spool files of a folder."""
    total = 0
    for entry in os.scandir(folder):
        try:
            total += entry.stat().st_size if entry.name.endswith((SUFFIX, PART_SUFFIX)) else 0
        except FileNotFoundError:  # finished by another replica meanwhile
            continue
    return total


@dataclass
class SpoolReader:
    """The whole batches of a spool file, in order; what follows them is counted."""

    path: Path
    schema: pa.Schema | None = None
    """None: the file ends before its schema does, so that no batch is in it."""
    rows: int = 0
    torn_bytes: int = 0
    """Bytes behind the last whole batch, once everything was read."""

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        """Read on up to the torn tail.

        Raises:
            OSError: the disk failed, which says nothing about the file.
        """
        with pa.OSFile(str(self.path), "rb") as file:
            good = 0
            try:
                reader = pa.ipc.open_stream(file)
                self.schema, good = reader.schema, file.tell()
                while True:
                    batch = reader.read_next_batch()
                    batch.validate(full=True)
                    good = file.tell()
                    self.rows += batch.num_rows
                    yield batch
            except StopIteration:
                pass
            except (pa.ArrowException, OSError) as error:
                if getattr(error, "errno", None):
                    raise
            self.torn_bytes = file.size() - good
