"""Calls that may be outlived: started together, waited for with a limit, never cancelled.

Cancelling a call, or giving it a short deadline, can crash Triton 2.51 (server issues 7368, 8034). So
whoever has waited long enough walks away; the call ends by itself, is counted as late, and its error, if
any, is consumed. The cap on calls in flight includes the late ones: it is what keeps them from piling up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

from serve.metrics import Metrics
from triton_models.errors import UpstreamError

T = TypeVar("T")

Clock = Callable[[], float]
"""Seconds, monotonic."""

OnLateFailure = Callable[[BaseException], None]
"""Told the error of a call that nobody waits for any more."""


class Call(Generic[T]):
    """One call under way."""

    def __init__(self, begun: Coroutine[Any, Any, T] | asyncio.Future[T], clock: Clock) -> None:
        self._clock = clock
        self.on_late_failure: OnLateFailure | None = None
        self.started_s = clock()
        self.ended_s: float | None = None
        self.abandoned = False
        self.task: asyncio.Future[T]
        if isinstance(begun, asyncio.Future):
            self.task = begun
            begun.add_done_callback(self._note_end)
        else:
            self.task = asyncio.create_task(self._timed(begun))

    async def _timed(self, coroutine: Coroutine[Any, Any, T]) -> T:
        try:
            return await coroutine
        finally:
            self.ended_s = self._clock()

    def _note_end(self, _: asyncio.Future[T]) -> None:
        if self.ended_s is None:
            self.ended_s = self._clock()

    async def wait(self, timeout_s: float) -> bool:
        """Wait for the end, at most ``timeout_s``; False if it has not come.

        What ``asyncio.wait`` does for a set of tasks, for one, at half the cost. The task is never cancelled,
        not even if whoever waits is.
        """
        if self.task.done() or timeout_s <= 0:
            if self.task.done():
                self._note_end(self.task)  # a future's own note comes a turn of the loop later
            return self.task.done()
        loop = asyncio.get_running_loop()
        waiter = loop.create_future()
        timer = loop.call_later(timeout_s, _release, waiter)

        def ended(_: asyncio.Future[T]) -> None:
            _release(waiter)

        self.task.add_done_callback(ended)
        try:
            await waiter
        finally:
            timer.cancel()
            self.task.remove_done_callback(ended)
        return self.task.done()

    @property
    def duration_s(self) -> float | None:
        """How long it took, once it has ended."""
        return None if self.ended_s is None else self.ended_s - self.started_s


def _release(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


class Lane:
    """The calls to one upstream, counted."""

    def __init__(self, name: str, *, limit: int, metrics: Metrics, clock: Clock) -> None:
        self.limit = limit
        self._leg = name
        self._metrics = metrics
        self._clock = clock
        self._gauge = metrics.in_flight.labels(name)
        self._late = {outcome: metrics.late.labels(name, outcome) for outcome in ("answered", "failed")}
        self._calls: set[Call[Any]] = set()

    @property
    def in_flight(self) -> int:
        """Calls that have not ended."""
        return len(self._calls)

    def start(self, begun: Coroutine[Any, Any, T] | asyncio.Future[T]) -> Call[T]:
        """Start a call now, or count one that has begun; it runs to its end whatever happens to who waits."""
        call = Call(begun, self._clock)
        self._calls.add(call)
        self._gauge.inc()
        call.task.add_done_callback(lambda _: self._ended(call))
        return call

    def _ended(self, call: Call[Any]) -> None:
        self._calls.discard(call)
        self._gauge.dec()
        if call.duration_s is not None:
            self._metrics.observe(self._leg, call.duration_s)
        # Reading the exception marks it as retrieved: a late failure must not reach the loop's handler.
        error = None if call.task.cancelled() else call.task.exception()
        if call.abandoned:
            self._late["answered" if error is None else "failed"].inc()
            if error is not None and call.on_late_failure is not None:
                call.on_late_failure(error)
            if error is not None and not isinstance(error, UpstreamError):
                asyncio.get_running_loop().call_exception_handler(
                    {"message": "a late call failed unexpectedly", "exception": error, "task": call.task}
                )

    async def drain(self, timeout_s: float) -> None:
        """At shutdown: wait for what is under way, then give up on it."""
        tasks = {call.task for call in self._calls}
        if tasks:
            _, pending = await asyncio.wait(tasks, timeout=timeout_s)
            for task in pending:
                task.cancel()
            if pending:
                await asyncio.wait(pending, timeout=1.0)
