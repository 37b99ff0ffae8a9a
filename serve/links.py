"""What is known of each value-network server: does it answer, and was its model made for our surface?

A server is asked for choices only after its model's own parameters were read and fit. They are read when
the sidecar starts, after a failed call, and from time to time, since another version can be loaded under
the same name. The reading happens in the background: no request waits for it.

The parameters are not enough, since Triton still reports them when the process behind the model is dead.
Whether a server is asked on behalf of requests is therefore also up to its circuit breaker
(:mod:`serve.breaker`): once it is open, real questions of this watcher's own must be answered in time
before it closes. A request never pays for finding out.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from serve.breaker import Decision as BreakerDecision
from serve.breaker import Event, after
from serve.clients import ValueClient, ValueQuestion
from serve.coalesce import Asked, Coalescer, Typical, linger_s
from serve.config import ValueNetworkConfig
from serve.decide import Decision, Link, ValueAnswer, check_answer
from serve.fanout import Call, Clock, Lane
from serve.metrics import Metrics
from serve.server_link import ServerLink, remember, require_fitting_model
from triton_models.errors import SurfaceMismatchError, UpstreamError
from triton_models.surface import Surface
from triton_models.tensors import state_specs

logger = logging.getLogger(__name__)

DRAIN_S = 2.0
"""How long the end waits for trial calls, which are not cancelled for the reason in serve.fanout."""

LINK_VALUES: dict[Link, int] = {"verified": 1, "open": 0, "unreachable": 0, "mismatch": -1}

UPSTREAM = "value_network"

PATIENCE_STEP = 0.05
"""Weight of the newest ranking in the running mean of the ranker's time."""


class ValueLinks:
    """All value-network servers of a sidecar; :meth:`pick` balances between those that may be asked."""

    def __init__(
        self,
        surface: Surface,
        config: ValueNetworkConfig,
        clients: Sequence[ValueClient],
        metrics: Metrics,
        *,
        expected_run_id: str | None = None,
        clock: Clock = time.perf_counter,
    ) -> None:
        self._surface = surface
        self._config = config
        self._metrics = metrics
        self._clock = clock
        self._expected_run_id = expected_run_id
        self._trial_state = {spec.name: np.zeros(spec.shape, spec.dtype) for spec in state_specs(surface)}
        self._trial_scalarization_M = surface.scalarization([1.0] * len(surface.objectives))

        def lane() -> Lane:
            return Lane(UPSTREAM, limit=config.max_in_flight, metrics=metrics, clock=clock)

        # A lane per server: one that is stuck fills its own, not everybody's. What is capped is calls.
        def coalescer(client: ValueClient) -> Coalescer:
            limit_s = config.coalesce_ms / 1000.0
            rows = config.coalesce_rows
            return Coalescer(client, limit_s=limit_s, max_rows=rows, metrics=metrics, clock=clock)

        self.links = [ServerLink(client, lane(), coalescer(client)) for client in clients]
        for link in self.links:
            metrics.set_breaker(UPSTREAM, link.client.name, link.breaker.kind)
        self._patience_s = config.budget_ms / 1000.0
        self._ranker = Typical()
        self._turn = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._trials: set[asyncio.Task[ValueAnswer]] = set()

    def pick(self) -> ServerLink | None:
        """The server that may be asked and has the fewest calls in flight, of equals the next in turn."""
        links, best = self.links, None
        for _ in links:
            self._turn = (self._turn + 1) % len(links)
            link = links[self._turn]
            if link.link != "verified" or not link.breaker.admits:
                continue
            if best is None or link.lane.in_flight < best.lane.in_flight:
                best = link
        if best is not None:
            self._turn = links.index(best)
        return best

    def ask(
        self,
        link: ServerLink,
        question: ValueQuestion,
        *,
        beside_ranker: bool,
    ) -> tuple[Asked, Call[ValueAnswer]]:
        """Ask a server; beside a ranker there is time to share a call."""
        wait_s = None
        if beside_ranker:
            limit_s, budget_s = self._config.coalesce_ms / 1000.0, self._config.budget_ms / 1000.0
            wait_s = linger_s(self._ranker, link.coalescer.typical, limit_s=limit_s, budget_s=budget_s)
        asked = link.coalescer.ask(question, linger_s=wait_s)
        return asked, link.lane.start(asked.answer)

    @property
    def overall(self) -> Link:
        """Verified if any server is; else what is worth most attention."""
        states = {link.state for link in self.links}
        return next((kind for kind in ("verified", "mismatch", "open") if kind in states), "unreachable")

    @property
    def in_flight(self) -> int:
        """Calls in flight to all servers, late ones included."""
        return sum(link.lane.in_flight for link in self.links)

    async def start(self, first_check_s: float = 2.0) -> None:
        """Start watching; give the first check of each server a moment, then go on without it."""
        self._tasks = [asyncio.create_task(self._watch(link)) for link in self.links]
        deadline = asyncio.get_running_loop().time() + first_check_s
        while any(link.detail == "not asked yet" for link in self.links):
            if asyncio.get_running_loop().time() >= deadline:
                break
            await asyncio.sleep(0.01)

    async def stop(self) -> None:
        """Stop watching, let calls in flight end, close the connections."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(link.lane.drain(DRAIN_S) for link in self.links))
        if self._trials:
            _, pending = await asyncio.wait(self._trials, timeout=DRAIN_S)
            for trial in pending:
                trial.cancel()
            await asyncio.gather(*pending, return_exceptions=True)
        for link in self.links:
            await link.coalescer.close()
            await link.client.close()

    # ------------------------------------------------------------------ what became of calls

    def observe_ranker(self, duration_s: float) -> None:
        """A request waits beside the ranker for nothing, so a probe may take as long as the ranker does."""
        budget_s = self._config.budget_ms / 1000.0
        self._ranker.add(duration_s)
        self._patience_s += PATIENCE_STEP * (max(budget_s, duration_s) - self._patience_s)

    def report(self, link: ServerLink, event: Event, *, epoch: int, why: str = "") -> None:
        """What became of a call that began in ``epoch`` of the link's breaker."""
        self._advance(link, event, epoch, why)
        if event == "failed":
            link.runs = {}  # perhaps another server is there next, whose versions count anew
        if event != "answered" and epoch == link.breaker.epoch:
            link.suspect = True
            link.wake.set()
        elif not link.breaker.admits:
            link.wake.set()

    def _advance(
        self, link: ServerLink, event: Event, epoch: int | None = None, why: str = ""
    ) -> BreakerDecision:
        now_s = self._clock()
        link.breaker, decision = after(link.breaker, event, now_s, self._config.breaker, epoch=epoch)
        if decision.turned is not None:
            self._turned(link, decision, why or event)
        return decision

    def _turned(self, link: ServerLink, decision: BreakerDecision, why: str) -> None:
        kind, link.suspect = link.breaker.kind, False
        self._metrics.count_breaker_turn(UPSTREAM, link.client.name, kind)
        self._metrics.set_link(link.client.name, LINK_VALUES[link.state])
        if kind == "open" and (not link.broken or why != link.broken):
            logger.warning("value network at %s is asked no more: %s", link.client.name, why)
            link.broken = why
        elif kind == "closed":
            logger.info("value network at %s works again", link.client.name)
            link.broken = ""

    def run_of(self, link: ServerLink, decision: Decision) -> str | None:
        """Run of the model version that chose; None: nobody chose, or that version is not known yet.

        A version that is not known (it was rolled out a moment ago) is asked about at once, of a server whose
        configuration says which version it is of: another would be asked for ever.
        """
        if decision.source != "value_network":
            return None
        version, says = decision.version, link.client.described_version is not None
        if version and version not in link.runs and says:
            link.wake.set()
        return link.runs.get(version)

    # ------------------------------------------------------------------ watching

    async def _watch(self, link: ServerLink) -> None:
        while True:
            pause_s = await self.check(link)
            # Not wait_for: in Python 3.11 it can swallow the cancellation that ends this task.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await link.wake.wait()
                # However many calls are late, the watcher's own stay rare.
                await asyncio.sleep(self._config.breaker.probe_s)
            link.wake.clear()

    async def check(self, link: ServerLink) -> float:
        """Read what a server serves, and probe it if its breaker says so; seconds until the next check."""
        decision = self._advance(link, "due")
        if not link.breaker.admits and not decision.probe:
            return decision.wait_s
        if link.suspect and link.breaker.admits:
            link.suspect = False
            await self._look(link)
            return max(0.0, link.read_due_s - self._clock()) if link.breaker.admits else 0.0
        fits = await self._read_parameters(link)
        if not decision.probe:
            pause_s = self._config.recheck_s if fits else self._config.retry_s
            link.read_due_s = self._clock() + pause_s
            return pause_s
        if fits:
            decision = await self._probe(link)
        else:
            decision = self._advance(link, "failed", why=link.detail)
        self._metrics.set_link(link.client.name, LINK_VALUES[link.state])
        return self._config.recheck_s if link.breaker.admits else decision.wait_s

    async def _read_parameters(self, link: ServerLink) -> bool:
        parameters: Mapping[str, str] = {}
        kind: Link = "verified"
        detail = ""
        runs = link.runs  # what is read of a server that fails meanwhile goes where nobody looks
        try:
            parameters = await link.client.parameters()
            require_fitting_model(self._surface, parameters, where=link.client.name)
        except SurfaceMismatchError as error:
            kind, detail = "mismatch", str(error)
        except UpstreamError as error:
            kind, detail = "unreachable", str(error)
        except Exception as error:  # the last net: without its watcher a server would never be asked again
            logger.exception("the check of the value network at %s broke", link.client.name)
            kind, detail = "unreachable", f"the check broke: {error!r}"
        if kind == "verified":
            link.run_id = parameters.get("run_id")
            remember(runs, link.client.described_version, link.run_id)
        self._set(link, kind, detail)
        self._warn_of_foreign_run(link)
        return kind == "verified"

    def _try(self, link: ServerLink) -> asyncio.Task[ValueAnswer]:
        call = link.client.choose(self._trial_state, self._trial_scalarization_M, {})
        trial = asyncio.create_task(call)
        self._trials.add(trial)
        trial.add_done_callback(self._trials.discard)
        return trial

    async def _look(self, link: ServerLink) -> None:
        """Is a server with a late or failed call stuck? What is merely slow, requests count by themselves."""
        epoch, stuck_s = link.breaker.epoch, self._config.breaker.stuck_s
        trial = self._try(link)
        await asyncio.wait((trial,), timeout=stuck_s)
        if not trial.done():
            self._advance(link, "stuck", epoch, why=f"no answer within {stuck_s:g} s")
            await asyncio.wait((trial,))
            trial.exception()  # retrieved
        elif (wrong := self._wrong(trial)) is not None:
            self._advance(link, "failed", epoch, why=wrong)

    async def _probe(self, link: ServerLink) -> BreakerDecision:
        """One real call, its answer thrown away. It is not cancelled when it is late, but waited out: there
        is never more than one per server.
        """
        trial = self._try(link)
        patience_s = self._patience_s
        await asyncio.wait((trial,), timeout=patience_s)
        if not trial.done():
            self._advance(link, "late", why=f"no answer within {patience_s * 1000.0:.3g} ms")
            await asyncio.wait((trial,))
            trial.exception()  # retrieved: that it was late has been said already
            return BreakerDecision(probe=False, wait_s=0.0, turned=None)
        return self._judge(link, trial)

    def _judge(self, link: ServerLink, trial: asyncio.Task[ValueAnswer]) -> BreakerDecision:
        wrong = self._wrong(trial)
        return self._advance(link, "answered" if wrong is None else "failed", why=wrong or "")

    def _wrong(self, trial: asyncio.Task[ValueAnswer]) -> str | None:
        """What is wrong with a call that has ended."""
        if (error := trial.exception()) is not None:
            return str(error) if isinstance(error, UpstreamError) else f"unreadable answer: {error!r}"
        wrong = check_answer(self._surface, trial.result())
        return None if wrong is None else f"answers rubbish: {wrong}"

    def _foreign_run(self, link: ServerLink) -> bool:
        expected = self._expected_run_id
        return expected is not None and link.link == "verified" and link.run_id != expected

    def _warn_of_foreign_run(self, link: ServerLink) -> None:
        if self._foreign_run(link) and link.warned_of != (link.run_id,):
            link.warned_of = (link.run_id,)
            logger.warning(
                "the value network at %s is of run %s, the operating point was chosen for run %s",
                link.client.name,
                link.run_id or "unknown",
                self._expected_run_id,
            )

    def _set(self, link: ServerLink, kind: Link, detail: str) -> None:
        if (link.link, link.detail) != (kind, detail):
            level = logging.INFO if kind == "verified" else logging.WARNING
            logger.log(level, "value network at %s is %s %s", link.client.name, kind, detail)
        link.link, link.detail = kind, detail
        self._metrics.set_link(link.client.name, LINK_VALUES[link.state])

    def describe(self) -> list[dict[str, Any]]:
        """What is known of each server, for ``/readyz``."""
        return [
            {
                "address": link.client.name,
                "link": link.state,
                "detail": link.broken or link.detail,
                "breaker": link.breaker.kind,
                "in_flight": link.lane.in_flight,
                "run_id": link.run_id,
                "run_id_expected": self._expected_run_id,
                "run_id_mismatch": self._foreign_run(link),
            }
            for link in self.links
        ]
