"""The shipper's half of the decision log: finished spool files → segments, its own and dead processes'.

A segment that the storage does not take is tried again, with growing pauses, and meanwhile its spool file
stays. One thread; every round can be called by hand.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

from serve.decision_log_config import DecisionLogConfig
from serve.segments import LocalStore, RemoteStore, SegmentStore, write_segment
from serve.spool import PART_SUFFIX, Ownership, SpoolName, lock_owners, spool_files

logger = logging.getLogger(__name__)

Clock = Callable[[], float]


def open_store(config: DecisionLogConfig) -> SegmentStore:
    """The configured place of the segments.

    Raises:
        OSError, ValueError: it cannot be opened now.
    """
    return RemoteStore.of_uri(config.folder) if config.is_uri else LocalStore(Path(config.folder))


class Shipper:
    """Makes segments of the files it is given, and of those it finds without a living owner."""

    def __init__(
        self,
        config: DecisionLogConfig,
        *,
        owner: str,
        finished: deque[SpoolName],
        store: SegmentStore | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self.segments = 0
        self.segment_bytes = 0
        self.recovered_rows = 0
        """Rows of dead processes that became segments here."""
        self.failures = 0
        self.last_error: str | None = None
        """Null while the storage works."""
        self._config = config
        self._folder = config.spool_folder
        self._owner = owner
        self._finished = finished
        self._store = store
        self._clock = clock
        self._pending: deque[SpoolName] = deque()
        self._adopted: dict[str, Ownership] = {}
        self._swept_s = float("-inf")
        self._next_try_s = float("-inf")
        self._pause_s = config.retry_s

    @property
    def backlog(self) -> int:
        """Files that wait for the storage."""
        return len(self._pending) + len(self._finished)

    def work(self) -> None:
        """One round: whatever is waiting, until the storage refuses. Never raises for what a disk does."""
        now_s = self._clock()
        try:
            if now_s - self._swept_s >= self._config.sweep_s:
                self._swept_s = now_s
                self._adopt()
        except OSError as error:
            self._failed(error)
        while self._finished:
            self._pending.append(self._finished.popleft())
        if now_s < self._next_try_s:
            return
        for _ in range(len(self._pending)):
            try:
                self._ship(self._pending[0])
            except (OSError, ValueError, pa.ArrowException) as error:
                self._pending.rotate(-1)  # a file of its own trouble must not hold up the others
                self._failed(error)
                return
            self._pending.popleft()
            self.last_error, self._pause_s = None, self._config.retry_s
        self._release_finished()

    def _failed(self, error: Exception) -> None:
        self.failures += 1
        self.last_error = " ".join(str(error).split())[:300] or type(error).__name__
        self._next_try_s = self._clock() + self._pause_s
        self._pause_s = min(self._pause_s * 2, self._config.retry_max_s)
        logger.warning("the decision log keeps its spool: %s: %s", self._config.shown_folder, self.last_error)

    def _ship(self, name: SpoolName) -> None:
        spool = self._folder / name.file
        part = spool.with_name(spool.name + PART_SUFFIX)
        if not spool.exists():
            logger.error("%s is gone before it became a segment", spool)
            return
        if self._store is None:
            self._store = open_store(self._config)
        segment = write_segment(spool, part)
        if segment.rows:
            try:
                self._store.put(part, name.segment)
            finally:
                part.unlink(missing_ok=True)
            self.segments += 1
            self.segment_bytes += segment.bytes
        if segment.torn_bytes:
            logger.info("%s: %d bytes of a batch that was never finished", spool, segment.torn_bytes)
        spool.unlink()
        if name.owner != self._owner:
            self.recovered_rows += segment.rows

    # ------------------------------------------------------------------ dead processes

    def _adopt(self) -> None:
        """Take over the files of owners that are gone."""
        if not self._folder.exists():
            return
        owners = {name.owner for name in spool_files(self._folder)} | lock_owners(self._folder)
        for owner in sorted(owners - {self._owner} - set(self._adopted)):
            ownership = Ownership.claim(self._folder, owner)
            if ownership is None:
                continue
            # Listed under the lock: before it, the owner or another heir may have been at work.
            names = [name for name in spool_files(self._folder) if name.owner == owner]
            for part in self._folder.glob(f"{owner}-*{PART_SUFFIX}"):
                part.unlink(missing_ok=True)
            self._adopted[owner] = ownership
            self._pending.extend(names)
            if names:
                logger.warning("recovering %d spool files of %s, which is gone", len(names), owner)
        self._release_finished()

    def _release_finished(self) -> None:
        waiting = {name.owner for name in self._pending}
        for owner in [owner for owner in self._adopted if owner not in waiting]:
            self._adopted.pop(owner).release(done=True)

    def release(self) -> None:
        """At shutdown: what was adopted and is not finished is anybody's again."""
        for ownership in self._adopted.values():
            ownership.release(done=False)
        self._adopted.clear()
