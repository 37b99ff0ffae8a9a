"""Becomes tritonserver, and leaves a small guardian behind. Run as a script, standard library only.

``python guardian.py OWNER_PID SHM_PREFIX NICENESS PLACE CORES PROGRAM ARGUMENTS…``

PLACE is ``as-usual``, ``last-of-sessions`` or ``last`` (:mod:`triton_models.standing_aside`), CORES the
numbers of those that it may use, with commas, or ``all``.

``PR_SET_PDEATHSIG`` alone will not do: Linux sends it when the *thread* that started the child ends,
and a server may well be started from a short-lived thread. So the guardian watches two processes, its
owner (whoever runs this script) and the server:

* the owner is gone, however it died: the server's process group is ended;
* the server is gone, however it died: its model processes are killed, and the shared-memory regions
  that carry this server's own prefix are removed.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from pathlib import Path

GRACE_S = 5.0
POLL_S = 0.25
SHARED_MEMORY = Path("/dev/shm")
ALL_CORES = "all"
AS_USUAL, LAST_OF_SESSIONS, LAST = "as-usual", "last-of-sessions", "last"
LEAST_NICENESS = 19
SESSION_TRIES, SESSION_WAIT_S = 5, 0.11


def is_running(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def wait_for_either(owner: int, server: int, descriptors: list[int]) -> None:
    """Block until one of the two processes has ended."""
    if descriptors:
        select.select(descriptors, [], [])
        return
    while is_running(owner) and is_running(server):
        time.sleep(POLL_S)


def remove_regions(prefix: str) -> None:
    """Remove shared-memory regions with exactly this server's prefix."""
    if not prefix or not SHARED_MEMORY.is_dir():
        return
    for path in SHARED_MEMORY.iterdir():
        if path.name.startswith(prefix):
            with contextlib.suppress(OSError):
                path.unlink()


def pid_namespace() -> str:
    """Which process ids are meant: containers may share /dev/shm and know each other's processes not."""
    try:
        return f"{Path('/proc/self/ns/pid').stat().st_ino:x}"
    except OSError:
        return "0"


def region_prefix(owner: int, unique: str) -> str:
    """Prefix of a server's shared-memory regions: whose it is can be told from the name alone."""
    return f"puts_{owner}_{pid_namespace()}_{unique}_"


def remove_orphans() -> int:
    """Remove regions whose owner is gone, guardian and all (kill -9 of everything); how many."""
    removed = 0
    for path in SHARED_MEMORY.iterdir() if SHARED_MEMORY.is_dir() else ():
        parts = path.name.split("_")
        ours = len(parts) > 4 and parts[0] == "puts" and parts[2] == pid_namespace()
        if ours and parts[1].isdecimal() and not is_running(int(parts[1])):
            with contextlib.suppress(OSError):
                path.unlink()
                removed += 1
    return removed


def end_group(server: int) -> None:
    """SIGTERM, a grace period, SIGKILL to whatever is left of the server's process group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server, signal.SIGTERM)
    deadline = time.monotonic() + GRACE_S
    while is_running(server) and time.monotonic() < deadline:
        time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server, signal.SIGKILL)


def guard(owner: int, server: int, descriptors: list[int], prefix: str) -> None:
    """The guardian's whole life."""
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    wait_for_either(owner, server, descriptors)
    if is_running(server):
        end_group(server)
    else:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server, signal.SIGKILL)
    remove_regions(prefix)


def step_back(niceness: int, place: str) -> None:
    """Let others go first, and so for whatever this process becomes and starts.

    Where the kernel groups processes by session (``man 7 sched``, autogroup), niceness counts inside the
    session only; what the whole session, which is the server's own, gets is said in another place. A place
    other than the usual one leaves the others nothing to wait for, until the owner takes it back
    (:mod:`triton_models.standing_aside`).
    """
    os.nice(niceness)
    set_session(niceness if place == AS_USUAL else LEAST_NICENESS)
    if place == LAST:
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def set_session(niceness: int, process: int | str = "self") -> None:
    """What the session of a process gets among sessions, where the kernel groups by them."""
    for _ in range(SESSION_TRIES):
        try:
            Path(f"/proc/{process}/autogroup").write_text(str(niceness), encoding="ascii")
        except BlockingIOError:  # it can be changed ten times a second, by all users together
            time.sleep(SESSION_WAIT_S)
        except OSError:
            return
        else:
            return


def keep_to(cores: str) -> None:
    """Run on these cores only, and so for whatever this process becomes and starts."""
    if cores != ALL_CORES:
        os.sched_setaffinity(0, {int(core) for core in cores.split(",")})


def open_descriptors(pids: list[int]) -> list[int]:
    """Descriptors that become readable when a process ends; none where the kernel has no such thing."""
    try:
        return [os.pidfd_open(pid) for pid in pids]
    except (OSError, AttributeError):
        return []


def main(owner: int, prefix: str, niceness: int, place: str, cores: str, command: list[str]) -> None:
    """Fork the guardian, then become the server, so that our pid is the server's."""
    server = os.getpid()
    descriptors = open_descriptors([owner, server])
    if os.getppid() != owner:
        return  # it has died already, and its pid may be somebody else's by now
    if os.fork() == 0:
        try:
            guard(owner, server, descriptors, prefix)
        finally:
            os._exit(0)
    if niceness:
        step_back(niceness, place)
    keep_to(cores)
    os.execv(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4], sys.argv[5], sys.argv[6:])
