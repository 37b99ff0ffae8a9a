"""One value-network server and what is known of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from serve.breaker import Breaker
from serve.clients import ValueClient
from serve.coalesce import Coalescer
from serve.decide import Link
from serve.fanout import Lane
from triton_models.errors import PutsError, SurfaceMismatchError
from triton_models.surface import Surface

RUNS = 64
"""Versions of one server whose run is remembered."""


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
    lane: Lane
    coalescer: Coalescer
    link: Link = "unreachable"
    """What its parameters say; never "open"."""
    detail: str = "not asked yet"
    run_id: str | None = None
    """Of the version that its parameters were read of last."""
    runs: dict[str, str | None] = field(default_factory=dict)
    """Version → run id, of the versions of one repository whose parameters were read."""
    breaker: Breaker = field(default_factory=Breaker)
    broken: str = ""
    """Why the breaker is not closed."""
    suspect: bool = False
    """A call was late or failed, and the watcher has not looked since."""
    read_due_s: float = 0.0
    """When its parameters are to be read again."""
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    warned_of: tuple[str | None] | None = None
    """The foreign run that was last warned of."""

    @property
    def state(self) -> Link:
        """What is known of the server, its breaker included."""
        return self.link if self.link == "mismatch" or self.breaker.admits else "open"


def remember(runs: dict[str, str | None], version: str | None, run_id: str | None) -> None:
    """Note which run a version is of; the same version of another run is of another repository."""
    if version is None:
        return
    if runs.get(version, run_id) != run_id or len(runs) >= RUNS:
        runs.clear()
    runs[version] = run_id
