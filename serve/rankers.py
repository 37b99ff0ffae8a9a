"""The ranker's servers: requests are balanced between them, a dead or stuck one is ejected and comes back.

The same breaker as for the value network (:mod:`serve.breaker`), with two differences, since there is no
ranking without a ranker:

* when every server is ejected, they are asked all the same: refusing would help nobody;
* a call that failed at once, because nobody answered, is sent once more to another server.

An ejected server is probed off the request path with one candidate of a request that was answered before,
a real inference; that one candidate is too few for it, say, is an answer as well, rubbish is none.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from serve.breaker import Breaker, Event, after
from serve.breaker import Decision as BreakerDecision
from serve.clients import Features, RankerClient, Scores
from serve.config import RankerConfig
from serve.fanout import Call, Clock, Lane
from serve.metrics import Metrics
from serve.wire import Headers
from triton_models.encoding import StateTensors
from triton_models.errors import UpstreamError, UpstreamRefusedError, UpstreamUnavailableError

logger = logging.getLogger(__name__)

UPSTREAM = "ranker"


FailureType = Literal[
    "no_ranker",
    "ranker_unavailable",
    "ranker_late",
    "ranker_overloaded",
    "ranker_invalid_answer",
    "ranker_refused",
]
"""refused: the ranker says that this request is wrong, which is its caller's doing and not the server's."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """The ranker gave no ranking, and none is invented: HTTP 503."""

    type: FailureType
    message: str


@dataclass
class RankerLink:
    """One server and what is known of it."""

    client: RankerClient
    lane: Lane
    breaker: Breaker = field(default_factory=Breaker)
    watcher: asyncio.Task[None] | None = None
    """Runs while the server is ejected."""


@dataclass(frozen=True)
class Question:
    """What the ranker is asked."""

    tensors: StateTensors
    candidates: Sequence[Any]
    headers: Headers
    features: Features

    def first(self) -> Question:
        """The same of the first candidate alone."""
        count = len(self.candidates)
        features = {name: raw[: len(raw) // count] for name, raw in self.features.items()}
        return Question(self.tensors, self.candidates[:1], {}, features)

    def ask(self, client: RankerClient) -> Coroutine[Any, Any, Scores]:
        """Ask it."""
        return client.score(self.tensors, self.candidates, self.headers, self.features)


@dataclass
class Scoring:
    """A question under way."""

    question: Question
    deadline_s: float
    link: RankerLink
    epoch: int
    call: Call[Scores]
    retried: bool = False


class Rankers:
    """All servers of the ranker."""

    def __init__(
        self, config: RankerConfig, clients: Sequence[RankerClient], metrics: Metrics, clock: Clock
    ) -> None:
        self._config = config
        self._metrics = metrics
        self._clock = clock

        def lane() -> Lane:
            return Lane(UPSTREAM, limit=config.max_in_flight, metrics=metrics, clock=clock)

        self.links = [RankerLink(client, lane()) for client in clients]
        for link in self.links:
            metrics.set_breaker(UPSTREAM, link.client.name, link.breaker.kind)
        self._turn = 0
        self._sample: Question | None = None
        self._probes: set[asyncio.Task[Any]] = set()

    def pick(self, *, other_than: RankerLink | None = None) -> RankerLink | None:
        """The server with the fewest calls in flight among those that may be asked; None: all are full."""
        links, best = self.links, None
        for _ in links:
            self._turn = (self._turn + 1) % len(links)
            link = links[self._turn]
            if link is other_than or link.lane.in_flight >= link.lane.limit:
                continue
            if best is None or _rank(link) < _rank(best):
                best = link
        if best is not None:
            self._turn = links.index(best)
        return best

    def start(self, question: Question) -> Scoring | Failure:
        """Ask a server now."""
        link = self.pick()
        if link is None:
            message = f"{self._config.max_in_flight} calls to the ranker are in flight already"
            return Failure(type="ranker_overloaded", message=message)
        deadline_s = self._clock() + self._config.timeout_ms / 1000.0
        call = link.lane.start(question.ask(link.client))
        return Scoring(question, deadline_s, link, link.breaker.epoch, call)

    async def finish(self, scoring: Scoring) -> Scores | Failure:
        """Wait for the scores, at most until the deadline."""
        while True:
            call, link, epoch = scoring.call, scoring.link, scoring.epoch
            if not await call.wait(scoring.deadline_s - self._clock()):
                call.abandoned = True
                message = f"the ranker did not answer within {self._config.timeout_ms:g} ms"
                self.report(link, "late", epoch, message)
                return Failure(type="ranker_late", message=message)
            try:
                scores = call.task.result()
            except UpstreamUnavailableError as error:
                self.report(link, "failed", epoch, str(error))
                if not self._ask_another(scoring):
                    return Failure(type="ranker_unavailable", message=str(error))
            except UpstreamRefusedError as error:
                # The server works: one caller's wrong requests must not eject it for everybody.
                self.report(link, "answered", epoch)
                return Failure(type="ranker_refused", message=str(error))
            except UpstreamError as error:
                self.report(link, "failed", epoch, str(error))
                return Failure(type="ranker_invalid_answer", message=str(error))
            except Exception as error:  # the last net: an adapter's bug is no ranking either
                logger.exception("the call to the ranker at %s broke", link.client.name)
                self.report(link, "failed", epoch, repr(error))
                return Failure(type="ranker_invalid_answer", message=f"unreadable answer: {error!r}")
            else:
                self.report(link, "answered", epoch)
                if len(self.links) > 1:
                    self._sample = scoring.question
                return scores

    def _ask_another(self, scoring: Scoring) -> bool:
        """Once, where nobody answered, and only a server that is not known to be broken."""
        other = None if scoring.retried else self.pick(other_than=scoring.link)
        if other is None or not other.breaker.admits:
            return False
        scoring.retried = True
        scoring.link, scoring.epoch = other, other.breaker.epoch
        scoring.call = other.lane.start(scoring.question.ask(other.client))
        self._metrics.ranker_retries.inc()
        return True

    def report(self, link: RankerLink, event: Event, epoch: int, why: str = "") -> None:
        """What became of a call that began in ``epoch`` of the link's breaker."""
        # One server alone is asked whatever happens: a breaker that nobody heeds would also never close.
        if len(self.links) == 1:
            return
        self._advance(link, event, epoch, why)
        if not link.breaker.admits and link.watcher is None:
            link.watcher = asyncio.create_task(self._watch(link))

    def _advance(
        self, link: RankerLink, event: Event, epoch: int | None = None, why: str = ""
    ) -> BreakerDecision:
        link.breaker, decision = after(link.breaker, event, self._clock(), self._config.breaker, epoch=epoch)
        if decision.turned is not None:
            self._metrics.count_breaker_turn(UPSTREAM, link.client.name, link.breaker.kind)
            level = logging.INFO if decision.turned != "open" else logging.WARNING
            logger.log(level, "ranker at %s: breaker %s %s", link.client.name, decision.turned, why)
        return decision

    async def _watch(self, link: RankerLink) -> None:
        try:
            while not link.breaker.admits:
                decision = self._advance(link, "due")
                if decision.probe:
                    decision = await self._probe(link)
                await asyncio.sleep(decision.wait_s)
        except Exception:  # the last net: without its watcher an ejected server would never come back
            logger.exception("watching the ranker at %s broke", link.client.name)
        finally:
            link.watcher = None

    async def _probe(self, link: RankerLink) -> BreakerDecision:
        """Never cancelled, but waited out: there is never more than one per server."""
        sample = self._sample
        probe: asyncio.Task[Any] = asyncio.create_task(
            link.client.ready() if sample is None else sample.first().ask(link.client)
        )
        self._probes.add(probe)
        probe.add_done_callback(self._probes.discard)
        await asyncio.wait((probe,), timeout=self._config.timeout_ms / 1000.0)
        if not probe.done():
            decision = self._advance(link, "late")
            await asyncio.wait((probe,))
            probe.exception()  # retrieved: that it was late has been said already
            return decision
        error = probe.exception()
        there = isinstance(error, UpstreamRefusedError) if error is not None else probe.result() is not False
        return self._advance(link, "answered" if there else "failed", why=str(error or "is not ready"))

    async def stop(self, timeout_s: float) -> None:
        """Let calls in flight end, then close the connections."""
        for link in self.links:
            if link.watcher is not None:
                link.watcher.cancel()
        await asyncio.gather(*(link.lane.drain(timeout_s) for link in self.links))
        if self._probes:
            _, pending = await asyncio.wait(self._probes, timeout=timeout_s)
            for probe in pending:
                probe.cancel()
            await asyncio.gather(*pending, return_exceptions=True)
        for link in self.links:
            await link.client.close()


def _rank(link: RankerLink) -> tuple[bool, int]:
    """Ejected ones last, of equals the fewest calls in flight."""
    return not link.breaker.admits, link.lane.in_flight
