"""The decision log: a queue that never blocks, a writer that fills the spool, a shipper that empties it.

::

    request path ──append──> queue ──every 0.25 s──> spool file ──hour, size, age──> Parquet segment
    (event loop)             memory, bounded          local disk, bounded             folder or object store
                             writer's thread                                          shipper's thread

What does not fit is dropped and counted by reason, never waited for. After ``kill -9`` the queue is lost,
which is younger than one second; the spool is finished by the next process (:mod:`serve.spool`). A third
thread forces the spool to the disk, for crashes of the machine.

Each number below is written by one thread only, so that none needs a lock.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from serve.decision_log_config import DecisionLogConfig
from serve.decision_record import DecisionRecord, log_probability, make_record, sampled
from serve.pseudonyms import make_rename
from serve.requests import WeightsRequest
from serve.segments import SegmentStore
from serve.shipper import Shipper
from serve.spool_writer import DROP_REASONS, DropReason, SpoolWriter
from triton_models.encoding import StateTensors
from triton_models.surface import Surface
from triton_models.tensors import state_specs

logger = logging.getLogger(__name__)

Clock = Callable[[], float]

RECORD_BYTES = 4096
"""Of a record besides its tensors: the object, its dictionaries and its strings, generously."""

TAKE = 256
"""Records taken from the queue at a time."""

SHIPPER_S = 0.1
"""How often the shipper looks whether there is something to do."""


class DecisionLog:
    """The log of one replica. :meth:`record` belongs to one thread, the event loop's."""

    def __init__(
        self,
        surface: Surface,
        config: DecisionLogConfig,
        *,
        store: SegmentStore | None = None,
        clock: Clock = time.monotonic,
        wall_clock: Clock = time.time,
        publish: Callable[[DecisionLog], None] | None = None,
    ) -> None:
        self._surface = surface
        self._config = config
        self._wall_clock = wall_clock
        self._publish = publish
        self.writer = SpoolWriter(surface, config, rename=make_rename(config), clock=clock)
        self.shipper = Shipper(
            config, owner=self.writer.owner, finished=self.writer.finished, store=store, clock=clock
        )
        self._queue: deque[DecisionRecord] = deque()
        # Tensors are as large as the surface says, whatever the request sent.
        self._state_bytes = sum(
            math.prod(spec.shape) * np.dtype(spec.dtype).itemsize for spec in state_specs(surface)
        )
        self._bytes_in = 0
        self._bytes_out = 0
        self._queue_full = 0
        self._refused_closed = 0
        self._no_record = 0
        self._closed = False
        self.last_write_s: float | None = None
        """Unix time at which records went to the spool last."""
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    # ------------------------------------------------------------------ the request path

    def record(
        self,
        request: WeightsRequest,
        answer: Mapping[str, Any],
        *,
        route: str,
        tensors: StateTensors | None,
        frontier_fingerprint: str | None = None,
        run_id: str | None = None,
        trace_id: str | None = None,
    ) -> bool:
        """Queue the decision of an answer that was made, if it is in the sample. Never waits, never raises.

        Returns:
            Whether it is in the queue.
        """
        try:
            probability = log_probability(answer, self._config.sample_rate)
            if not sampled(request.request_id, probability):
                return False
            record = make_record(
                self._surface,
                request,
                answer,
                route=route,
                tensors=tensors,
                probability=probability,
                frontier_fingerprint=frontier_fingerprint,
                run_id=run_id,
                trace_id=trace_id,
            )
        except Exception:  # the last net: a bug of the log is no reason to lose the answer
            self._no_record += 1
            logger.exception("a decision cannot be recorded")
            return False
        return self.put(record)

    def put(self, record: DecisionRecord) -> bool:
        """Queue a record, or count why not."""
        if self._closed:
            self._refused_closed += 1
            return False
        size = self._size(record)
        full = len(self._queue) >= self._config.queue_records
        if full or self.queue_bytes + size > self._config.queue_bytes:
            self._queue_full += 1
            return False
        self._bytes_in += size
        self._queue.append(record)
        return True

    def _size(self, record: DecisionRecord) -> int:
        return RECORD_BYTES + (self._state_bytes if record.tensors is not None else 0)

    @property
    def queue_bytes(self) -> int:
        """Memory of the records that are not in the spool yet."""
        return self._bytes_in - self._bytes_out

    @property
    def queue_depth(self) -> int:
        """Records that wait for the writer."""
        return len(self._queue)

    # ------------------------------------------------------------------ the threads

    def flush(self) -> None:
        """One cycle of the writer: what is in the queue now goes to the spool."""
        for _ in range(0, len(self._queue), TAKE):
            taken = [self._queue.popleft() for _ in range(min(TAKE, len(self._queue)))]
            before = self.writer.written
            try:
                self.writer.write(taken)
            finally:  # they are out of the queue, whatever became of them
                self._bytes_out += sum(map(self._size, taken))
            if self.writer.written > before:
                self.last_write_s = self._wall_clock()
        self.writer.tend()
        if self._publish is not None:
            self._publish(self)

    def start(self) -> None:
        """Start the threads. A folder that cannot be written is no obstacle: it is tried again and again."""
        works = [
            ("writer", self.flush, self._config.flush_s),
            ("shipper", self.shipper.work, SHIPPER_S),
        ]
        if self._config.fsync_s is not None:
            works.append(("syncer", self.writer.sync, self._config.fsync_s))
        for name, work, pause_s in works:
            thread = threading.Thread(
                target=self._run, args=(work, pause_s), name=f"decision-log-{name}", daemon=True
            )
            thread.start()
            self._threads.append(thread)

    def _run(self, work: Callable[[], None], pause_s: float) -> None:
        while not self._stop.wait(pause_s):
            try:
                work()
            except Exception:  # the last net: without its thread the log would stand still
                logger.exception("the decision log's thread broke and goes on")

    def close(self) -> None:
        """Write what is queued, make segments for a while, stop. Blocks: not for the event loop's thread."""
        self._closed = True
        self._stop.set()
        deadline_s = time.monotonic() + self._config.close_s
        for thread in self._threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))
        if any(thread.is_alive() for thread in self._threads):
            # Still at a disk or a storage that hangs: its files stay its own until the process ends.
            logger.warning("the decision log did not end in time; the next process finishes its spool")
            return
        self.flush()
        self.writer.end_file()
        self.writer.sync()
        while self.shipper.backlog and self.shipper.last_error is None and time.monotonic() < deadline_s:
            self.shipper.work()
        done = not self.shipper.backlog
        self.shipper.release()
        self.writer.release(done=done)

    # ------------------------------------------------------------------ what is known of it

    @property
    def dropped(self) -> dict[DropReason, int]:
        """Records that were not logged, by reason."""
        dropped = {reason: self.writer.dropped[reason] for reason in DROP_REASONS}
        dropped["invalid_record"] += self._no_record
        return dropped | {"queue_full": self._queue_full, "closed": self._refused_closed}

    def describe(self) -> dict[str, Any]:
        """For ``/readyz``: nothing that identifies a user, no address with credentials."""
        age_s = None if self.last_write_s is None else round(self._wall_clock() - self.last_write_s, 3)
        return {
            "queue_records": self.queue_depth,
            "queue_bytes": self.queue_bytes,
            "written": self.writer.written,
            "dropped": {reason: count for reason, count in self.dropped.items() if count},
            "segments": self.shipper.segments,
            "recovered_rows": self.shipper.recovered_rows,
            "spool_bytes": self.writer.spooled_bytes,
            "spool_files_waiting": self.shipper.backlog,
            "storage_error": self.shipper.last_error,
            "last_write_age_s": age_s,
        }
