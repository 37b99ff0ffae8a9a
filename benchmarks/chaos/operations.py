"""The stage of operations: two replicas, their policies and the store of these, decision log and disk.

Ranker and value network are stand-ins, since nothing happens to them here.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import psutil
import yaml

from benchmarks.chaos.faults import Fault
from benchmarks.chaos.logged import log_verdicts, read_log
from benchmarks.chaos.measure import Conductor, StageResult
from benchmarks.chaos.policies import PolicyCaller, policy_verdict
from benchmarks.chaos.stores import URL_VARIABLE, Store, policy_store
from benchmarks.chaos.verdicts import Verdict
from benchmarks.sidecar.hosting import ray_sidecar
from benchmarks.stack import Stack
from benchmarks.stand_ins.behaviour import Behaviour
from benchmarks.stand_ins.process import StandInProcess
from triton_models.errors import BenchmarkError

REPLICAS = 2
DISK_BYTES = 256 * 1024**2
"""Size of the decision log's file system in memory: a stage logs about 7 KB a request, and the disk must have
room until the fault fills it."""
MIN_FREE_BYTES = 4 * 1024**2
"""What the decision log leaves free on its disk."""
REPLACED_TIMEOUT_S = 60.0


def run_operations(conductor: Conductor, ranker: StandInProcess) -> StageResult:
    """The stage.

    Raises:
        PutsError: something does not start, or answers nothing.
    """
    m, folder = conductor.materials, conductor.folder / "operations"
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        stack.enter_context(ranker)
        value = stack.enter_context(StandInProcess("value_network", m.surface_file, Behaviour()))
        log = folder / "decisions"
        mounted = stack.enter_context(small_disk(log, conductor.say))
        store = stack.enter_context(policy_store(folder))
        config = folder / "sidecar.yaml"
        settings = {
            "policy_store": {"url": f"env:{URL_VARIABLE}"},
            "access": {"allow_local_changes": True},
            "decision_log": {
                "folder": str(log),
                "sample_rate": 1.0,
                "segment_s": 5.0,
                "sweep_s": 2.0,
                "min_free_bytes": MIN_FREE_BYTES,
            },
        }
        config.write_text(yaml.safe_dump(settings), encoding="utf-8")
        arguments = ["--config", str(config), "--surface", str(m.surface_file), "--replicas", str(REPLICAS)]
        arguments += ["--triton", value.address, "--ranker", ranker.address]
        arguments += ["--budget-ms", str(conductor.settings.budget_ms)]
        with ray_sidecar(folder / "sidecar", arguments, {URL_VARIABLE: store.url}) as sidecar:
            caller = PolicyCaller(sidecar.address)
            killed: list[float] = []
            groups = [
                lambda: [policy_fault(caller), store_fault(caller, store)],
                lambda: [replica_fault(sidecar, killed)],
                lambda: [disk_fault(log)] if mounted else [],
            ]
            title = f"{REPLICAS} replicas behind Ray's proxy, policies, decision log; stand-ins as models"
            result = conductor.run("operations", title, sidecar.address, groups)
            end_s = time.monotonic()
            dropped = f"decisions dropped, by the sidecar's own count: {dropped_decisions(sidecar.address)}"
        # Ended in order, it has made segments of what was in its spool, the killed replica's part included.
        return with_verdicts(replace(result, notes=(dropped,)), caller, log, killed, end_s)


def with_verdicts(
    result: StageResult, caller: PolicyCaller, log: Path, killed: list[float], end_s: float
) -> StageResult:
    """R3 and R4 added to a stage."""
    found: list[Verdict] = list(result.verdicts)
    if caller.calls:
        found.append(policy_verdict(result.records, caller.calls, end_s))
    full = [(e.began_s, e.works_s) for e in result.episodes if e.name == "disk_full"]
    if killed:
        found += log_verdicts(result.records, read_log(log), killed_s=killed, excused=full)
    return replace(result, verdicts=tuple(found))


def policy_fault(caller: PolicyCaller) -> Fault:
    """Not a fault: changes and a roll-back under load (R3)."""
    return Fault(
        name="policy_changed",
        title="policy changed and rolled back",
        concerns="policy",
        begin=caller.change_and_return,
        end=lambda: None,
        seconds=0.0,
    )


def store_fault(caller: PolicyCaller, store: Store) -> Fault:
    """The policy database gone: what is in force stays, a change is refused, and taken once it is back."""

    def take_away() -> None:
        store.take_away()
        caller.expect_refusal()

    def bring_back() -> None:
        store.bring_back()
        caller.apply_when_up([0.5, 0.5])

    return Fault(
        name="store_gone",
        title=store.title,
        concerns="store",
        begin=take_away,
        end=bring_back,
        note="a change is refused meanwhile, and taken afterwards",
    )


def replicas(owner_pid: int) -> list[psutil.Process]:
    """The sidecar's replicas under ``serve up``."""
    found = []
    for child in psutil.Process(owner_pid).children(recursive=True):
        with suppress(psutil.Error):
            line = child.cmdline()
            if line and line[0].startswith("ray::ServeReplica"):
                found.append(child)
    return found


def replica_fault(sidecar: Stack, killed: list[float]) -> Fault:
    """One replica killed; Ray starts another."""

    def kill() -> None:
        alive = replicas(sidecar.pid)
        if len(alive) < REPLICAS:
            raise BenchmarkError(f"expected {REPLICAS} replicas, found {len(alive)}")
        killed.append(time.monotonic())
        os.kill(alive[0].pid, signal.SIGKILL)

    def wait() -> None:
        deadline = time.monotonic() + REPLACED_TIMEOUT_S
        while len(replicas(sidecar.pid)) < REPLICAS:
            if time.monotonic() > deadline:
                raise BenchmarkError(f"no new replica within {REPLACED_TIMEOUT_S:.0f} s")
            time.sleep(0.1)

    return Fault(
        name="replica_killed",
        title="one of two replicas killed",
        concerns="sidecar",
        begin=kill,
        end=wait,
        note="callers ask once more when their connection, or the proxy's to the replica, breaks",
    )


def disk_fault(log: Path) -> Fault:
    """The decision log's disk full."""
    filler = log / "_filler"

    def fill() -> None:
        free = free_bytes(log)
        if free <= MIN_FREE_BYTES:
            raise BenchmarkError(f"the disk was full before it was filled: {free} bytes were free")
        fill_up(filler)

    def empty() -> None:
        free = free_bytes(log)
        filler.unlink()
        if free > MIN_FREE_BYTES:
            raise BenchmarkError(f"the disk did not stay full: {free} bytes were free again")

    return Fault(
        name="disk_full",
        title="decision log's disk full",
        concerns="log",
        begin=fill,
        end=empty,
        note="decisions are dropped and counted",
    )


def free_bytes(folder: Path) -> int:
    """What is left of a folder's file system."""
    return shutil.disk_usage(folder).free


def fill_up(filler: Path) -> None:
    """A file that takes all that is left of its disk, to the last byte: half blocks as well."""
    # Unbuffered: what a buffer could not write is written again when the file is closed, and fails there.
    with filler.open("wb", buffering=0) as file:
        size = 65536
        while size:
            try:
                if file.write(bytes(size)):
                    continue
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
            size //= 2


@contextmanager
def small_disk(folder: Path, say: Callable[[str], None], size: int = DISK_BYTES) -> Iterator[bool]:
    """A small file system in memory; False, and said so, where mounting is not allowed."""
    folder.mkdir(parents=True, exist_ok=True)
    program = shutil.which("mount")
    command = [program or "mount", "-t", "tmpfs", "-o", f"size={size}", "puts-chaos", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False) if program else None
    if done is None or done.returncode:
        why = done.stderr.strip() if done else "no mount here"
        say(f"  no small disk for the decision log ({why}): the full disk is left out")
        yield False
        return
    try:
        yield True
    finally:
        subprocess.run(["umount", "-l", str(folder)], capture_output=True, check=False)


def dropped_decisions(address: str) -> str:
    """What the sidecar's metrics say of decisions that were not logged."""
    with suppress(OSError), urllib.request.urlopen(f"{address}/metrics", timeout=10.0) as response:
        lines = response.read().decode().splitlines()
        found = [line for line in lines if line.startswith("puts_decision_log_dropped_total{")]
        counts = (line.removeprefix("puts_decision_log_dropped_total") for line in found)
        return ", ".join(counts) or "none"
    return "not known: no metrics"
