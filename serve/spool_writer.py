"""The writer's half of the decision log: records → spool files. One thread.

What cannot be written is dropped and counted, never kept for later: memory stays bounded whatever the disk
does, and the next cycle tries anew, so that the log recovers by itself.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Literal, get_args

import pyarrow as pa

from serve.decision_batch import to_batch
from serve.decision_log_config import DecisionLogConfig
from serve.decision_record import DecisionRecord
from serve.pseudonyms import Rename
from serve.spool import Ownership, SpoolFile, SpoolName, folder_bytes, hour_of, new_owner
from triton_models.decision_format import decision_schema
from triton_models.surface import Surface

logger = logging.getLogger(__name__)

Clock = Callable[[], float]

DropReason = Literal["queue_full", "spool_full", "disk_full", "write_error", "invalid_record", "closed"]
"""Why a record was not logged: the memory, the spool's limit, no space, another error of the disk, a
record that does not fit the schema (a bug of ours), or the log was closed."""

DROP_REASONS: tuple[DropReason, ...] = get_args(DropReason)

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

BATCH_ROWS = 64
"""Rows put into columns at a time: a longer hold of the interpreter would be felt by the event loop."""

LOOK_S = 1.0
"""How often the size of the spool is read anew, and an error of the disk is logged again."""


class SpoolWriter:
    """Appends records to the open spool file and ends it when its time has come."""

    def __init__(
        self,
        surface: Surface,
        config: DecisionLogConfig,
        *,
        rename: Rename | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self.folder = config.spool_folder
        self.owner = new_owner()
        self.written = 0
        """Records that are in the spool, or have been."""
        self.dropped: Counter[DropReason] = Counter()
        self.spooled_bytes = 0
        """Of all replicas of the node."""
        self.finished: deque[SpoolName] = deque()
        """Files that were ended: the shipper's."""
        self.unsynced: deque[SpoolFile] = deque()
        """Files with batches that were not forced to the disk yet."""
        self._surface = surface
        self._schema = decision_schema(surface, user_ids=config.user_ids)
        self._config = config
        self._rename = rename
        self._clock = clock
        self._ownership: Ownership | None = None
        self._file: SpoolFile | None = None
        self._number = 0
        self._opened_s = 0.0
        self._looked_s = float("-inf")
        self._warned_s = float("-inf")

    # ------------------------------------------------------------------ writing

    def write(self, records: Sequence[DecisionRecord]) -> None:
        """Append records, hour by hour. Never raises for what the disk does."""
        for hour, group in groupby(records, key=lambda record: hour_of(record.timestamp_us)):
            rows = list(group)
            for start in range(0, len(rows), BATCH_ROWS):
                self._write_rows(hour, rows[start : start + BATCH_ROWS])
                time.sleep(0)  # let go of the interpreter: the event loop may be waiting for it

    def _write_rows(self, hour: str, rows: Sequence[DecisionRecord]) -> None:
        lost = len(rows)
        try:
            refused = self._refusal()
            if refused is not None:
                self.dropped[refused] += lost
                return
            batch = self._batch(rows)
            lost = 0 if batch is None else batch.num_rows
            if batch is None or batch.num_rows == 0:
                return
            before = self._file.size if self._file is not None else 0
            file = self._file_of(hour)
            file.append(batch)
        except (OSError, MemoryError, pa.ArrowException) as error:
            self._drop(lost, error)
            return
        if self._config.fsync_s is not None and not file.marked:
            file.marked = True
            self.unsynced.append(file)
        self.written += batch.num_rows
        self.spooled_bytes += max(0, file.size - before)

    def _batch(self, rows: Sequence[DecisionRecord]) -> pa.RecordBatch | None:
        """The rows as a batch; those that are no decisions are left out, one by one."""
        try:
            return to_batch(self._surface, self._schema, rows, self._rename)
        except Exception as error:  # whatever is wrong with a record, the others are written
            if len(rows) > 1:
                half = len(rows) // 2
                batches = [self._batch(part) for part in (rows[:half], rows[half:])]
                good = [batch for batch in batches if batch is not None]
                return pa.concat_batches(good) if good else None
            self.dropped["invalid_record"] += 1
            logger.error("a decision cannot be logged: %s", " ".join(repr(error).split())[:300])
            return None

    def _refusal(self) -> DropReason | None:
        """Why nothing is written now, from what the disk looked like within the last second."""
        now_s = self._clock()
        if now_s - self._looked_s >= LOOK_S or self.spooled_bytes >= self._config.spool_bytes:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.spooled_bytes = folder_bytes(self.folder)
            self._looked_s = now_s
        if self.spooled_bytes >= self._config.spool_bytes:
            return "spool_full"
        if self._config.min_free_bytes:
            disk = os.statvfs(self.folder)
            if disk.f_bavail * disk.f_frsize < self._config.min_free_bytes:
                return "disk_full"
        return None

    def _drop(self, lost: int, error: Exception) -> None:
        full = isinstance(error, OSError) and error.errno in FULL
        self.dropped["disk_full" if full else "write_error"] += lost
        now_s = self._clock()
        if now_s - self._warned_s >= LOOK_S * 10:
            self._warned_s = now_s
            logger.warning(
                "the decision log drops records: %s: %s",
                self.folder,
                getattr(error, "strerror", None) or error,
            )
        if self._file is not None and self._file.broken:
            self.end_file()

    # ------------------------------------------------------------------ files

    def _file_of(self, hour: str) -> SpoolFile:
        file = self._file
        if file is not None and (file.name.hour != hour or self._is_full(file)):
            self.end_file()
        if self._file is None:
            if self._ownership is None:
                self._ownership = Ownership.claim(self.folder, self.owner)
            self._number += 1
            name = SpoolName(self.owner, self._number, hour)
            self._file = SpoolFile(self.folder, name, self._schema)
            self._opened_s = self._clock()
        return self._file

    def _is_full(self, file: SpoolFile) -> bool:
        return file.rows >= self._config.segment_rows or file.size >= self._config.segment_bytes

    def tend(self) -> None:
        """End the open file if it is full or old."""
        if self._file is None:
            return
        if self._is_full(self._file) or self._clock() - self._opened_s >= self._config.segment_s:
            self.end_file()

    def sync(self) -> None:
        """Force what was written to the disk. In a thread of its own: a busy disk takes seconds for it, and
        records that waited meanwhile would be what ``kill -9`` costs.
        """
        for _ in range(len(self.unsynced)):
            file = self.unsynced.popleft()
            file.marked = False  # before: what comes during the call may not be part of it
            try:
                file.sync()
            except FileNotFoundError:
                continue  # a segment by now, which was forced to the disk itself
            except OSError as error:
                logger.warning("%s: cannot be forced to the disk: %s", file.path, error.strerror or error)

    def end_file(self) -> None:
        """End the open file, if any: it is the shipper's now."""
        file, self._file = self._file, None
        if file is not None:
            file.close()
            self.finished.append(file.name)

    def release(self, *, done: bool) -> None:
        """At shutdown: give the lock back; ``done``: no file of ours is left."""
        if self._ownership is not None:
            self._ownership.release(done=done)
            self._ownership = None
