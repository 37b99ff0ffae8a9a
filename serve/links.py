"""What is known of each value-network server: does it answer, and was its model made for our surface?

A server is asked for choices only after its model's own parameters were read and fit. They are read when
the sidecar starts, after a failed call, and from time to time, since another version can be loaded under
the same name. The reading happens in the background: no request waits for it.

After a failed call the parameters are not enough, since Triton still reports them when the process behind
the model is dead: the server must also answer one real question before it is asked on behalf of requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from serve.clients import ValueClient
from serve.config import ValueNetworkConfig
from serve.decide import Link, ValueAnswer, check_answer
from serve.metrics import Metrics
from triton_models.errors import PutsError, SurfaceMismatchError, UpstreamError, UpstreamInvalidError
from triton_models.surface import Surface
from triton_models.tensors import state_specs

logger = logging.getLogger(__name__)

DRAIN_S = 2.0
"""How long the end waits for trial calls, which are not cancelled for the reason in serve.fanout."""

LINK_VALUES: dict[Link, int] = {"verified": 1, "unreachable": 0, "mismatch": -1}


def require_fitting_model(surface: Surface, parameters: Mapping[str, str], *, where: str) -> None:
    """Refuse a served model that was made for another surface.

    Raises:
        SurfaceMismatchError: naming the fields that differ.
    """
    if parameters.get("surface_fingerprint") == surface.fingerprint:
        return
    if "surface" not in parameters:
        raise SurfaceMismatchError(
            f"the model at {where} does not say which control surface it was made for; "
            "export it with python -m triton_models export"
        )
    try:
        served = Surface.from_dict(json.loads(parameters["surface"]), source=f"surface of {where}")
        surface.require_same(served, this="the sidecar", that=f"the model at {where}")
    except SurfaceMismatchError:
        raise
    except (ValueError, RecursionError, PutsError) as error:
        raise SurfaceMismatchError(f"the model at {where} has an unreadable surface: {error}") from error
    raise SurfaceMismatchError(f"the model at {where} has a fingerprint that is not its surface's")


@dataclass
class ServerLink:
    """One server and what is known of it."""

    client: ValueClient
    link: Link = "unreachable"
    detail: str = "not asked yet"
    run_id: str | None = None
    generation: int = 0
    """Failures reported so far; what was begun in an earlier generation is old news."""
    suspect: bool = False
    """A call failed and no trial call has been answered since."""
    warned_of: tuple[str | None] | None = None
    """The foreign run that was last warned of."""


class ValueLinks:
    """All value-network servers of a sidecar; :meth:`pick` takes the fitting ones in turn."""

    def __init__(
        self,
        surface: Surface,
        config: ValueNetworkConfig,
        clients: Sequence[ValueClient],
        metrics: Metrics,
        *,
        expected_run_id: str | None = None,
    ) -> None:
        self._surface = surface
        self._config = config
        self._metrics = metrics
        self._expected_run_id = expected_run_id
        self._trial_state = {spec.name: np.zeros(spec.shape, spec.dtype) for spec in state_specs(surface)}
        self._trial_scalarization_M = surface.scalarization([1.0] * len(surface.objectives))
        self.links = [ServerLink(client) for client in clients]
        self._wake = {id(link): asyncio.Event() for link in self.links}
        self._turn = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._trials: set[asyncio.Task[ValueAnswer]] = set()

    def pick(self) -> ServerLink | None:
        """The next server that fits, or None."""
        for _ in self.links:
            self._turn = (self._turn + 1) % len(self.links)
            if self.links[self._turn].link == "verified":
                return self.links[self._turn]
        return None

    @property
    def overall(self) -> Link:
        """Verified if any server is; else a mismatch is worth more attention than silence."""
        links = {link.link for link in self.links}
        return next((kind for kind in ("verified", "mismatch") if kind in links), "unreachable")

    async def start(self, first_check_s: float = 2.0) -> None:
        """Start watching; give the first check of each server a moment, then go on without it."""
        self._tasks = [asyncio.create_task(self._watch(link)) for link in self.links]
        deadline = asyncio.get_running_loop().time() + first_check_s
        while any(link.detail == "not asked yet" for link in self.links):
            if asyncio.get_running_loop().time() >= deadline:
                break
            await asyncio.sleep(0.01)

    async def stop(self) -> None:
        """Stop watching and close the connections."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._trials:
            _, pending = await asyncio.wait(self._trials, timeout=DRAIN_S)
            for trial in pending:
                trial.cancel()
            await asyncio.gather(*pending, return_exceptions=True)
        for link in self.links:
            await link.client.close()

    def report_failure(self, link: ServerLink, error: UpstreamError, *, generation: int) -> None:
        """A call begun in ``generation`` failed: ask no more until the server has answered a trial call."""
        if generation != link.generation:
            return
        link.generation += 1
        link.suspect = True
        if link.link == "verified":
            self._set(link, "unreachable", str(error))
        self._wake[id(link)].set()

    async def _watch(self, link: ServerLink) -> None:
        wake = self._wake[id(link)]
        while True:
            await self.check(link)
            pause_s = self._config.recheck_s if link.link == "verified" else self._config.retry_s
            # Not wait_for: in Python 3.11 it can swallow the cancellation that ends this task.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await wake.wait()
                # A server whose checks pass and whose calls fail is tried at this pace, not at once.
                await asyncio.sleep(self._config.retry_s)
            wake.clear()

    async def check(self, link: ServerLink) -> None:
        """Read what a server serves, once; after a failed call, also try whether it answers."""
        generation = link.generation
        parameters: Mapping[str, str] = {}
        kind: Link = "verified"
        detail = ""
        try:
            parameters = await link.client.parameters()
            require_fitting_model(self._surface, parameters, where=link.client.name)
            if link.suspect:
                await self._try(link)
        except SurfaceMismatchError as error:
            kind, detail = "mismatch", str(error)
        except UpstreamError as error:
            kind, detail = "unreachable", str(error)
        except Exception as error:  # the last net: without its watcher a server would never be asked again
            logger.exception("the check of the value network at %s broke", link.client.name)
            kind, detail = "unreachable", f"the check broke: {error!r}"
        if generation != link.generation:
            return  # a call has failed since: what was seen before says nothing; the next check is due
        if kind == "verified":
            link.suspect = False
            link.run_id = parameters.get("run_id")
        self._set(link, kind, detail)
        self._warn_of_foreign_run(link)

    async def _try(self, link: ServerLink) -> None:
        """One real call, its answer thrown away.

        Raises:
            UpstreamError: no answer, or rubbish.
        """
        call = link.client.choose(self._trial_state, self._trial_scalarization_M, {})
        trial = asyncio.create_task(call)
        self._trials.add(trial)
        trial.add_done_callback(self._trials.discard)
        wrong = check_answer(self._surface, await asyncio.shield(trial))
        if wrong is not None:
            raise UpstreamInvalidError(f"answers rubbish: {wrong}")

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
        self._metrics.set_link(link.client.name, LINK_VALUES[kind])

    def describe(self) -> list[dict[str, Any]]:
        """What is known of each server, for ``/readyz``."""
        return [
            {
                "address": link.client.name,
                "link": link.link,
                "detail": link.detail,
                "run_id": link.run_id,
                "run_id_expected": self._expected_run_id,
                "run_id_mismatch": self._foreign_run(link),
            }
            for link in self.links
        ]
