"""The value network's part of one request: asked or not, waited for within the budget, its answer judged.

It is waited for until its budget ends, or until the ranker has answered if that is later, since waiting
beside the ranker costs nothing.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from serve.assignment import Assignment
from serve.breaker import Event
from serve.clients import ValueQuestion
from serve.coalesce import Asked
from serve.config import ValueNetworkConfig
from serve.decide import (
    Decision,
    Outcome,
    Reason,
    Situation,
    ValueAnswer,
    check_answer,
    decide,
    explored,
    refusal,
    remaining_wait_s,
    static,
)
from serve.fanout import Call, Clock
from serve.links import ValueLinks
from serve.metrics import Metrics
from serve.server_link import ServerLink
from serve.wire import Headers
from triton_models.encoding import StateTensors
from triton_models.errors import (
    UpstreamError,
    UpstreamInvalidError,
    UpstreamRefusedError,
    UpstreamUnavailableError,
)
from triton_models.surface import Surface

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Encoded:
    """A state as tensors, or what is wrong with it."""

    tensors: StateTensors
    problem: Reason | None
    message: str = ""


@dataclass(frozen=True, kw_only=True)
class Begun:
    """A request that has its assignment: from one snapshot of the policy, whatever changes meanwhile."""

    started_s: float
    control: bool
    """Whether weights may be other than production's: the operator's switch and the request's, both."""
    encoded: Encoded
    assigned: Assignment


@dataclass
class ValueRace:
    """The value network's part of one request."""

    refused: Reason | None
    settled: Decision | None = None
    """The policy's own choice: the value network is not asked."""
    link: ServerLink | None = None
    call: Call[ValueAnswer] | None = None
    asked: Asked | None = None
    epoch: int = 0
    """The breaker's when the call began: an older call says nothing about a server that is back."""


class ValueRaces:
    """Begins and ends the races of a sidecar."""

    def __init__(
        self,
        surface: Surface,
        config: ValueNetworkConfig,
        links: ValueLinks,
        metrics: Metrics,
        clock: Clock,
    ) -> None:
        self._surface = surface
        self._config = config
        self._links = links
        self._metrics = metrics
        self._clock = clock

    def start(self, begun: Begun, headers: Headers, *, beside_ranker: bool) -> ValueRace:
        """Ask a server, or say why none is asked."""
        control, encoded, assigned = begun.control, begun.encoded, begun.assigned
        if control and assigned.action is not None:
            return ValueRace(refused=None, settled=explored(self._surface, assigned.action))
        scalarization_M = assigned.scalarization_M
        if control and scalarization_M is None:
            return ValueRace(refused=None, settled=static(self._surface))
        link = self._links.pick()
        situation = Situation(
            control=control,
            state_problem=encoded.problem,
            link="verified" if link is not None else self._links.overall,
            in_flight=link.coalescer.in_flight if link is not None else 0,
            max_in_flight=self._config.max_in_flight,
        )
        refused = refusal(situation)
        if refused is not None or link is None or scalarization_M is None:
            return ValueRace(refused=refused or "unavailable")
        epoch = link.breaker.epoch
        question = ValueQuestion(encoded.tensors, scalarization_M, headers)
        asked, call = self._links.ask(link, question, beside_ranker=beside_ranker)
        # Not a closure over the race, which holds the call: a cycle per request would need collecting.
        call.on_late_failure = lambda error: self._report(link, epoch, asked, error)
        return ValueRace(refused=None, link=link, call=call, asked=asked, epoch=epoch)

    def _report(self, link: ServerLink, epoch: int, asked: Asked, error: BaseException) -> None:
        """Tell the link's breaker of a failed call."""
        why = str(error) if isinstance(error, UpstreamError) else f"unreadable answer: {error!r}"
        # A server that refuses a request works: one caller's wrong ones must not close it to everybody.
        self._tell(
            link, epoch, asked, "answered" if isinstance(error, UpstreamRefusedError) else "failed", why
        )

    def _tell(self, link: ServerLink, epoch: int, asked: Asked, event: Event, why: str = "") -> None:
        """Tell the link's breaker what became of a call, once for all requests that shared it."""
        if asked.call.is_news(event):
            self._links.report(link, event, epoch=epoch, why=why)

    async def finish(self, race: ValueRace, started_s: float) -> Decision:
        """Wait for what is left of the budget; the weights. The breaker hears what became of the call."""
        if race.settled is not None:
            self._metrics.count_decision(race.settled)
            return race.settled
        outcome = await self._outcome(race, started_s)
        decision = decide(self._surface, outcome)
        if race.link is not None and race.asked is not None and not isinstance(outcome, str):
            if decision.reason == "invalid_answer":
                wrong = check_answer(self._surface, outcome)
                self._tell(race.link, race.epoch, race.asked, "failed", f"answers rubbish: {wrong}")
            else:
                self._tell(race.link, race.epoch, race.asked, "answered")
        self._metrics.count_decision(decision)
        return decision

    async def _outcome(self, race: ValueRace, started_s: float) -> Outcome:
        link, asked, epoch = race.link, race.asked, race.epoch
        if race.refused is not None or race.call is None or link is None or asked is None:
            return race.refused or "unavailable"
        budget_ms = self._config.budget_ms
        wait_s = remaining_wait_s(started_s=started_s, now_s=self._clock(), budget_ms=budget_ms)
        if not await race.call.wait(wait_s):
            race.call.abandoned = True
            self._tell(link, epoch, asked, "late", f"no answer within {budget_ms:g} ms")
            return "late"
        try:
            return race.call.task.result()
        except UpstreamInvalidError as error:
            self._report(link, epoch, asked, error)
            return "invalid_answer"
        except UpstreamUnavailableError as error:
            self._report(link, epoch, asked, error)
            return "unavailable"
        except Exception as error:  # the last net: no fault of the value network fails a request
            logger.exception("the call to the value network at %s broke", link.client.name)
            self._report(link, epoch, asked, error)
            return "invalid_answer"

    def leave(self, race: ValueRace) -> None:
        """Nobody needs the answer any more: there is no ranking."""
        if race.call is None or race.link is None or race.asked is None:
            return
        if not race.call.task.done():
            race.call.abandoned = True
        elif not race.call.task.cancelled() and (error := race.call.task.exception()) is not None:
            self._report(race.link, race.epoch, race.asked, error)
