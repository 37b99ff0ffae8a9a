"""A server that steps back for others stands aside while it is started anew: what serves goes first.

A start is a second or two of imports and of loading models. On cores that rank, rankings would wait for it,
while nobody has to wait for the server: until it is back, production weights are used. Then it must count as
before, which is why niceness will not do: without ``CAP_SYS_NICE`` it can only grow. Two things can be taken
back, and each is used where it can:

* the scheduling class ``SCHED_IDLE`` (``man 7 sched``), where this user may leave it again;
* the niceness of the session among sessions, where the kernel groups by them (autogroup).

In a container without the capability and in a control group of its own there is neither: it starts as always.
"""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

from triton_models import guardian


def can_leave_idle() -> bool:
    """Whether this process may put a thread into ``SCHED_IDLE`` and take it out again; tried on a thread."""
    found: list[bool] = []

    def try_it() -> None:
        try:
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        except (OSError, AttributeError):  # not permitted, or not Linux
            return
        found.append(True)

    thread = threading.Thread(target=try_it, name="can-leave-idle")
    thread.start()
    thread.join()
    return bool(found)


def step_forward(group: int, niceness: int) -> None:
    """Let the processes of a process group count as they should: after :func:`guardian.step_back`.

    Args:
        group: Its number, which is the server's process id; a session of its own.
        niceness: Of the session from now on.
    """
    guardian.set_session(niceness, group)
    # A thread inherits the class of the one that makes it: until no thread is left that stands aside.
    while sum(map(_leave_idle, threads(group))):
        continue


def threads(group: int) -> list[int]:
    """Threads of all processes of the group."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        with contextlib.suppress(OSError):  # it has ended
            if os.getpgid(int(folder.name)) == group:
                found += [int(task.name) for task in (folder / "task").iterdir()]
    return found


def _leave_idle(thread: int) -> bool:
    """Whether it was idle, and is not any more."""
    try:
        if os.sched_getscheduler(thread) != os.SCHED_IDLE:
            return False
        os.sched_setscheduler(thread, os.SCHED_OTHER, os.sched_param(0))
    except OSError:
        return False
    return True
