"""What is known of each value-network server: does it answer, and was its model made for our surface?

A server is asked for choices only after its model's own parameters were read and fit. They are read when
the sidecar starts, after a failed call, and from time to time, since another version can be loaded under
the same name. The reading happens in the background: no request waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from serve.clients import ValueClient
from serve.config import ValueNetworkConfig
from serve.decide import Link
from serve.metrics import Metrics
from triton_models.errors import PutsError, SurfaceMismatchError, UpstreamError
from triton_models.surface import Surface

logger = logging.getLogger(__name__)

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


class ValueLinks:
    """All value-network servers of a sidecar; :meth:`pick` takes the fitting ones in turn."""

    def __init__(
        self,
        surface: Surface,
        config: ValueNetworkConfig,
        clients: Sequence[ValueClient],
        metrics: Metrics,
    ) -> None:
        self._surface = surface
        self._config = config
        self._metrics = metrics
        self.links = [ServerLink(client) for client in clients]
        self._wake = {id(link): asyncio.Event() for link in self.links}
        self._turn = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._checks: set[asyncio.Task[Any]] = set()

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
        for link in self.links:
            await link.client.close()

    def report_failure(self, link: ServerLink, error: UpstreamError) -> None:
        """A call failed: ask no more until the server has said again what it serves."""
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
        """Read what a server serves, once."""
        try:
            parameters = await link.client.parameters()
            require_fitting_model(self._surface, parameters, where=link.client.name)
        except SurfaceMismatchError as error:
            self._set(link, "mismatch", str(error))
        except UpstreamError as error:
            self._set(link, "unreachable", str(error))
        else:
            link.run_id = parameters.get("run_id")
            self._set(link, "verified", "")

    def _set(self, link: ServerLink, kind: Link, detail: str) -> None:
        if (link.link, link.detail) != (kind, detail):
            level = logging.INFO if kind == "verified" else logging.WARNING
            logger.log(level, "value network at %s is %s %s", link.client.name, kind, detail)
        link.link, link.detail = kind, detail
        self._metrics.set_link(link.client.name, LINK_VALUES[kind])

    def describe(self) -> list[dict[str, Any]]:
        """What is known of each server, for ``/readyz``."""
        return [
            {"address": link.client.name, "link": link.link, "detail": link.detail, "run_id": link.run_id}
            for link in self.links
        ]
