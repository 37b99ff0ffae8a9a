"""Faults: how each is put in, and how it ends. Signals go to processes that this benchmark started, by id."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import psutil

from benchmarks.chaos.episodes import Concerns
from benchmarks.stand_ins.behaviour import Mode
from benchmarks.stand_ins.process import StandInProcess
from triton_models.errors import BenchmarkError
from triton_models.server import EmbeddedServer

WORKS_TIMEOUT_S = 60.0
STUB = "triton_python_backend_stub"


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Put in by ``begin``; ``end`` mends it and returns when what was broken works again."""

    name: str
    title: str
    concerns: Concerns
    begin: Callable[[], object]
    end: Callable[[], object]
    supervised: bool = False
    """Mended by our own supervision: ``end`` only waits."""
    seconds: float | None = None
    """How long it stays; None: as the settings say."""
    note: str = ""


# ------------------------------------------------------------------------------------- somebody's Triton


def triton_faults(server: EmbeddedServer) -> list[Fault]:
    """Faults of a real tritonserver that nobody of ours supervises; this benchmark plays its platform."""

    def mend() -> None:
        """Start it again if it does not answer, as a platform would."""
        if not server.is_alive() or not server.probe():
            server.restart()

    def continue_server() -> None:
        os.kill(server.pid, signal.SIGCONT)
        mend()

    def continue_stubs() -> None:
        _signal_stubs(server.pid, signal.SIGCONT)
        mend()

    return [
        Fault(
            name="value_killed",
            title="Triton killed",
            concerns="value_network",
            begin=lambda: os.kill(server.pid, signal.SIGKILL),
            end=server.restart,
            note="started again by its platform",
        ),
        Fault(
            name="value_stopped",
            title="Triton stopped (SIGSTOP)",
            concerns="value_network",
            begin=lambda: os.kill(server.pid, signal.SIGSTOP),
            end=continue_server,
            note="continued; started again if it does not answer then",
        ),
        Fault(
            name="stub_stopped",
            title="model process stopped (SIGSTOP)",
            concerns="value_network",
            begin=lambda: _signal_stubs(server.pid, signal.SIGSTOP),
            end=continue_stubs,
            note="continued; started again if it does not answer then",
        ),
        Fault(
            name="stub_killed",
            title="model process killed",
            concerns="value_network",
            begin=lambda: _signal_stubs(server.pid, signal.SIGKILL),
            end=server.restart,
            note="started again by its platform",
        ),
    ]


def stubs(server_pid: int) -> list[psutil.Process]:
    """Model processes of a tritonserver."""
    with suppress(psutil.NoSuchProcess):
        children = psutil.Process(server_pid).children(recursive=True)
        return [child for child in children if _is_stub(child)]
    return []


def _is_stub(process: psutil.Process) -> bool:
    try:
        return STUB in " ".join(process.cmdline()[:1])
    except psutil.Error:
        return False


def _signal_stubs(server_pid: int, number: int) -> None:
    found = stubs(server_pid)
    if not found and number != signal.SIGCONT:
        raise BenchmarkError(f"tritonserver {server_pid} has no model process to signal")
    for process in found:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


# ------------------------------------------------------------------------------------------- stand-ins


RUBBISH: Sequence[tuple[Mode, str]] = (
    ("nan", "answers NaN"),
    ("off_grid", "answers off the grid"),
    ("wrong_shape", "answers wrong shapes"),
    ("empty", "answers without tensors"),
    ("error", "answers errors"),
)


def lying_faults(stand_in: StandInProcess, slow_ms: float) -> list[Fault]:
    """Faults of a value network that answers, but not well: a real gRPC server that lies on command."""
    honest = stand_in.behaviour

    def lie(mode: Mode) -> Callable[[], None]:
        return lambda: stand_in.tell(replace(honest, mode=mode))

    def restore() -> None:
        stand_in.tell(honest)

    found = [
        Fault(
            name=f"rubbish_{mode}",
            title=f"value network {words}",
            concerns="value_network",
            begin=lie(mode),
            end=restore,
        )
        for mode, words in RUBBISH
    ]
    slow = replace(honest, extra_ms=honest.extra_ms + slow_ms)
    found.append(
        Fault(
            name="value_slow",
            title=f"value network {slow_ms:g} ms slow",
            concerns="value_network",
            begin=lambda: stand_in.tell(slow),
            end=restore,
        )
    )
    return found


def killed_stand_in(stand_in: StandInProcess, name: str, title: str, concerns: Concerns) -> Fault:
    """A stand-in's process killed, and started again at its address."""
    return Fault(name=name, title=title, concerns=concerns, begin=stand_in.kill, end=stand_in.start)


def ranker_faults(ranker: StandInProcess, slow_ms: float) -> list[Fault]:
    """The ranker's own faults: the sidecar must say 503, why, and invent nothing."""
    honest = ranker.behaviour
    changes = (
        ("ranker_slow", f"ranker {slow_ms / 1e3:g} s slow", replace(honest, extra_ms=slow_ms)),
        ("ranker_error", "ranker answers errors", replace(honest, mode="error")),
        ("ranker_rubbish", "ranker answers NaN", replace(honest, mode="nan")),
    )
    found = [
        Fault(
            name=name,
            title=title,
            concerns="ranker",
            begin=lambda behaviour=behaviour: ranker.tell(behaviour),  # type: ignore[misc]
            end=lambda: ranker.tell(honest),
        )
        for name, title, behaviour in changes
    ]
    return [*found, killed_stand_in(ranker, "ranker_killed", "ranker down (killed)", "ranker")]


# ------------------------------------------------------------------------------------------ supervised


def supervised_faults(owner_pid: int, repository: str, address: str) -> list[Fault]:
    """Faults of servers that ``serve up`` started: it must replace them by itself.

    Args:
        owner_pid: process of ``serve up``.
        repository: path by which the value network's server is told from the ranker's.
        address: gRPC address of the value network.
    """

    def server() -> psutil.Process:
        return find_server(owner_pid, repository)

    def wait() -> None:
        wait_until_answering(address)

    return [
        Fault(
            name="embedded_killed",
            title="embedded tritonserver killed",
            concerns="value_network",
            begin=lambda: server().kill(),
            end=wait,
            supervised=True,
        ),
        Fault(
            name="embedded_stub_killed",
            title="embedded model process killed",
            concerns="value_network",
            begin=lambda: _signal_stubs(server().pid, signal.SIGKILL),
            end=wait,
            supervised=True,
        ),
        Fault(
            name="embedded_stopped",
            title="embedded tritonserver stopped (SIGSTOP)",
            concerns="value_network",
            begin=lambda: server().suspend(),
            end=wait,
            supervised=True,
            note="never continued: supervision replaces it",
        ),
    ]


def find_server(owner_pid: int, repository: str) -> psutil.Process:
    """The tritonserver of a repository under a process.

    Raises:
        BenchmarkError: there is none.
    """
    for child in psutil.Process(owner_pid).children(recursive=True):
        with suppress(psutil.Error):
            line = child.cmdline()
            program = bool(line) and line[0].endswith("tritonserver")
            if program and f"--model-repository={repository}" in line:
                return child
    raise BenchmarkError(f"process {owner_pid} has no tritonserver for {repository}")


def wait_until_answering(address: str, model: str = "value_network") -> None:
    """Wait until a server answers one real inference.

    Raises:
        BenchmarkError: it never does.
    """
    from triton_models.probe import ServerProbe

    deadline = time.monotonic() + WORKS_TIMEOUT_S
    probe = ServerProbe(address, (model,))
    try:
        while not (probe.server_ready() and probe.run(2.0) is None):
            if time.monotonic() > deadline:
                raise BenchmarkError(f"{model} at {address} did not come back in {WORKS_TIMEOUT_S:.0f} s")
            time.sleep(0.1)
    finally:
        probe.close()
