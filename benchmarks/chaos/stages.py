"""The stages: which servers run, and which faults they are given."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from benchmarks.chaos.faults import (
    Fault,
    killed_stand_in,
    lying_faults,
    ranker_faults,
    supervised_faults,
    triton_faults,
)
from benchmarks.chaos.measure import Conductor, Measured, Say, StageResult
from benchmarks.chaos.operations import run_operations
from benchmarks.chaos.settings import ChaosSettings
from benchmarks.materials import Materials
from benchmarks.sidecar.hosting import plain_sidecar, ray_sidecar
from benchmarks.stand_ins.behaviour import Behaviour
from benchmarks.stand_ins.process import StandInProcess
from triton_models.errors import BenchmarkError, PutsError
from triton_models.server import EmbeddedServer

RANKER_SLOW_MS = 2000.0
"""Beyond the sidecar's timeout of one second."""
UNDEGRADED_TIMEOUT_S = 30.0


class Stages:
    """What every stage needs."""

    def __init__(self, settings: ChaosSettings, materials: Materials, folder: Path, say: Say) -> None:
        self.settings = settings
        self.materials = materials
        self.folder = folder
        self.say = say

    def conductor(self, *, retries: int = 0, unique: bool = False) -> Conductor:
        """A fresh one."""
        return Conductor(self.settings, self.materials, self.folder, self.say, retries=retries, unique=unique)

    def run(self, machine: Mapping[str, Any]) -> Measured:
        """All stages that were asked for; one that cannot be run does not cost the others."""
        found: list[StageResult] = []
        failed: dict[str, str] = {}
        for name in self.settings.stages:
            self.say(f"stage {name}")
            try:
                found.append(self._stage(name))
            except PutsError as error:
                failed[name] = str(error)
                self.say(f"stage {name} could not be run: {error}")
        return Measured(
            settings=self.settings,
            network=self.materials.network,
            machine=machine,
            stages=tuple(found),
            failed=failed,
        )

    def _stage(self, name: str) -> StageResult:
        if name == "external":
            return self._quick() if self.settings.quick else self._external()
        if name == "supervised":
            return self._supervised()
        return run_operations(self.conductor(retries=1, unique=True), self._ranker())

    def _ranker(self) -> StandInProcess:
        s = self.settings
        behaviour = Behaviour(p50_ms=s.ranker_p50_ms, p99_ms=s.ranker_p99_ms)
        return StandInProcess("ranker", self.materials.surface_file, behaviour)

    def _quick(self) -> StageResult:
        """Stand-ins on both sides of the application under plain uvicorn."""
        m = self.materials
        with ExitStack() as stack:
            ranker = stack.enter_context(self._ranker())
            value = stack.enter_context(StandInProcess("value_network", m.surface_file, Behaviour()))
            config = {
                "surface": m.surface.to_dict(),
                "value_network": {"addresses": [value.address], "budget_ms": self.settings.budget_ms},
                "ranker": {"addresses": [ranker.address]},
            }
            address = stack.enter_context(plain_sidecar(self.folder / "sidecar", config))
            killed = killed_stand_in(value, "value_killed", "value network killed", "value_network")
            groups = [
                lambda: [*lying_faults(value, self.settings.slow_ms), killed],
                lambda: ranker_faults(ranker, RANKER_SLOW_MS),
            ]
            return self.conductor().run("external", "stand-ins, plain uvicorn", address, groups)

    def _external(self) -> StageResult:
        """Somebody else's servers: a real Triton, then a liar at its address; a replayed ranker."""
        m, s = self.materials, self.settings
        with ExitStack() as stack:
            ranker = stack.enter_context(self._ranker())
            server = EmbeddedServer(self._repository())
            stack.callback(server.stop)
            server.start()
            at = server.grpc_address
            arguments = ["--surface", str(m.surface_file), "--budget-ms", str(s.budget_ms)]
            arguments += ["--triton", at, "--ranker", ranker.address]
            sidecar = stack.enter_context(ray_sidecar(self.folder / "sidecar-external", arguments))
            liar = StandInProcess("value_network", m.surface_file, Behaviour(), at)

            def lies() -> list[Fault]:
                server.stop()
                stack.enter_context(liar)
                wait_until_undegraded(sidecar.address)
                return lying_faults(liar, s.slow_ms)

            groups = [lambda: triton_faults(server), lies, lambda: ranker_faults(ranker, RANKER_SLOW_MS)]
            title = "value network on a Triton of somebody else's, ranker elsewhere"
            return self.conductor().run("external", title, sidecar.address, groups)

    def _supervised(self) -> StageResult:
        """Servers that ``serve up`` started itself, with the real reference ranker."""
        m, s = self.materials, self.settings
        repository = self._repository()
        arguments = ["--surface", str(m.surface_file), "--budget-ms", str(s.budget_ms)]
        arguments += ["--repository", str(repository), "--ranker-repository", str(m.ranker_repository)]
        arguments += ["--log-dir", str(self.folder / "supervised-logs")]
        with ray_sidecar(self.folder / "sidecar-supervised", arguments) as sidecar:
            value = str(sidecar.details["triton"])
            groups = [lambda: supervised_faults(sidecar.pid, str(repository.resolve()), value)]
            title = "embedded servers under our own supervision, real ranker"
            return self.conductor().run("supervised", title, sidecar.address, groups)

    def _repository(self) -> Path:
        repository = self.materials.repository
        assert repository is not None  # noqa: S101
        return repository


def wait_until_undegraded(sidecar: str) -> None:
    """Until a sidecar says that the value network is in use.

    Raises:
        BenchmarkError: it does not come to that.
    """
    deadline = time.monotonic() + UNDEGRADED_TIMEOUT_S
    while True:
        with suppress(urllib.error.URLError, OSError, ValueError), _get(f"{sidecar}/readyz") as response:
            if json.load(response).get("degraded") is None:
                return
        if time.monotonic() > deadline:
            raise BenchmarkError(f"{sidecar} is still degraded after {UNDEGRADED_TIMEOUT_S:.0f} s")
        time.sleep(0.1)


def _get(url: str) -> Any:
    return urllib.request.urlopen(url, timeout=5.0)
