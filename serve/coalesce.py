"""Questions to one value-network server that share calls.

A call costs the sidecar, gRPC and Triton about as much for eight states as for one, and beside a ranker there
is time: its answer is not there for milliseconds yet. So a question that may wait does so, as long as the
ranker's slack allows (:func:`linger_s`), and the call then takes along whatever has gathered. It is what
Triton's dynamic batcher does for the model alone, one step earlier, where the cost of the call is saved too.

A question that may not wait (``/v1/weights``: the answer is all that its caller waits for) goes at once, and
takes along those that were waiting. None waits longer than ``coalesce_ms``.

A request whose trace is recorded has a call of its own, since a call carries one trace context; a shared call
carries none. What is sent was validated row by row; each answer is checked on its own. A call that fails,
fails for all that share it: each of these requests gets production weights. But a call that is refused is
made again, each question alone: a bad one hurts no other. The breaker judges calls, not requests: of each
call it hears each thing once (:class:`SharedCall`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextvars import Context
from dataclasses import dataclass, field

from serve.breaker import Event
from serve.clients import ValueClient, ValueQuestion
from serve.decide import ValueAnswer
from serve.fanout import Clock
from serve.metrics import Metrics
from triton_models.errors import UpstreamInvalidError, UpstreamRefusedError

SMOOTHING = 0.05
"""Weight of the newest time in a running mean."""

WIDTHS = 1.0
"""Mean absolute deviations by which a time is expected to miss its mean."""


@dataclass
class Typical:
    """Running mean of a time and of its absolute deviation, seconds, as TCP estimates a round trip."""

    mean_s: float = 0.0
    deviation_s: float = 0.0
    seen: bool = False

    def add(self, seconds: float) -> None:
        """One more."""
        if not self.seen:
            self.seen, self.mean_s, self.deviation_s = True, seconds, seconds / 2.0
            return
        self.deviation_s += SMOOTHING * (abs(seconds - self.mean_s) - self.deviation_s)
        self.mean_s += SMOOTHING * (seconds - self.mean_s)


def linger_s(ranker: Typical, call: Typical, *, limit_s: float, budget_s: float) -> float:
    """How long a question beside a ranker may wait for others::

        min(limit, early ranker - late call, budget - late call), at least 0

    where early is ``mean - deviation`` and late is ``mean + deviation``: the wait must neither show in
    the answer's time nor make the answer late. 0 until both times are known.
    """
    if not (ranker.seen and call.seen):
        return 0.0
    early_s = ranker.mean_s - WIDTHS * ranker.deviation_s
    late_s = call.mean_s + WIDTHS * call.deviation_s
    return max(0.0, min(limit_s, early_s - late_s, budget_s - late_s))


@dataclass(slots=True)
class SharedCall:
    """What a circuit breaker knows already of a call that several requests may share."""

    told: set[Event] = field(default_factory=set)

    def is_news(self, event: Event) -> bool:
        """Whether this is the first of the requests to say so."""
        known = event in self.told
        self.told.add(event)
        return not known


@dataclass(slots=True)
class Asked:
    """A question under way."""

    question: ValueQuestion
    answer: asyncio.Future[ValueAnswer]
    call: SharedCall = field(default_factory=SharedCall)
    """The call that it is in; one of its own until it has been sent."""


class Coalescer:
    """Gathers the questions to one server. Made and used inside one event loop.

    Args:
        client: the server.
        limit_s: longest wait of a question for others; 0: only what arrives together shares a call.
        max_rows: most questions of one call, if the server takes as many.
        clock: seconds, monotonic.
    """

    def __init__(
        self, client: ValueClient, *, limit_s: float, max_rows: int, metrics: Metrics, clock: Clock
    ) -> None:
        self._client = client
        self._limit_s = limit_s
        self._max_rows = max_rows
        self._metrics = metrics
        self._clock = clock
        self._waiting: list[Asked] = []
        self._calls: set[asyncio.Task[None]] = set()
        self._timer: asyncio.Handle | None = None
        self._due_s = 0.0
        # A call belongs to no single request: what it logs must not carry the id of whoever asked first.
        self._context = Context()
        self.typical = Typical()
        """Of a call."""

    def ask(self, question: ValueQuestion, *, linger_s: float | None) -> Asked:
        """Ask; the answer is to come. ``linger_s`` None: at once."""
        loop = asyncio.get_running_loop()
        asked = Asked(question, loop.create_future())
        if question.is_traced:
            self._begin([asked])
            return asked
        self._waiting.append(asked)
        # "At once" is when this turn of the loop is over: what arrived with it goes along.
        full = len(self._waiting) >= self._rows
        self._send_in(0.0 if linger_s is None or full else min(linger_s, self._limit_s))
        return asked

    @property
    def in_flight(self) -> int:
        """Calls that have not ended."""
        return len(self._calls)

    @property
    def _rows(self) -> int:
        return max(1, min(self._max_rows, self._client.max_rows))

    def _send_in(self, wait_s: float) -> None:
        """At the latest; never later than what was set before."""
        due_s = self._clock() + wait_s
        if self._timer is not None:
            if due_s >= self._due_s:
                return
            self._timer.cancel()
        loop = asyncio.get_running_loop()
        self._due_s = due_s
        if wait_s > 0:
            self._timer = loop.call_later(wait_s, self._send, context=self._context)
        else:
            self._timer = loop.call_soon(self._send, context=self._context)

    def _send(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        rows = self._rows
        while self._waiting:
            together, self._waiting = self._waiting[:rows], self._waiting[rows:]
            self._begin(together)

    def _begin(self, together: Sequence[Asked]) -> None:
        shared = SharedCall()
        for asked in together:
            asked.call = shared
        call = asyncio.create_task(self._call(together), context=self._context)
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)

    async def _call(self, together: Sequence[Asked]) -> None:
        self._metrics.count_value_call(len(together))
        began_s = self._clock()
        try:
            answers = await self._client.choose_many([waiting.question for waiting in together])
            if len(answers) != len(together):
                raise UpstreamInvalidError(
                    f"{self._client.name}: expected {len(together)} answers, got {len(answers)}"
                )
        except UpstreamRefusedError as error:
            if len(together) > 1:  # one of them, or all of them together: each is to be judged by itself
                for asked in together:
                    self._begin([asked])
            else:
                self._fail(together, error)
            return
        except Exception as error:  # handed to those who wait, whatever it is
            self._fail(together, error)
            return
        self.typical.add(self._clock() - began_s)
        for waiting, answer in zip(together, answers, strict=True):
            if not waiting.answer.done():
                waiting.answer.set_result(answer)

    @staticmethod
    def _fail(together: Sequence[Asked], error: Exception) -> None:
        for asked in together:
            if not asked.answer.done():
                asked.answer.set_exception(error)

    async def close(self) -> None:
        """Give up on calls under way: at shutdown, after they had their time."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for waiting in self._waiting:
            waiting.answer.cancel()
        self._waiting = []
        calls = list(self._calls)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
