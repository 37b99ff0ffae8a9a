"""Standing aside, and stepping forward with every thread."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from triton_models import guardian, standing_aside

PROGRAM = """
import subprocess, sys, threading, time
threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
child = subprocess.Popen([sys.executable, "-c", "import time; print('here', flush=True); time.sleep(60)"])
time.sleep(60)
"""


@pytest.mark.skipif(not standing_aside.can_leave_idle(), reason="needs CAP_SYS_NICE")
def test_every_thread_steps_forward() -> None:
    guard = [sys.executable, "-I", "-S", guardian.__file__]
    guard += [str(os.getpid()), "puts_none_", "5", guardian.LAST, guardian.ALL_CORES]
    command = [*guard, sys.executable, "-c", PROGRAM]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "here"
        threads = standing_aside.threads(process.pid)
        assert len(threads) == 3  # its own, the thread it made, the process it started
        assert {os.sched_getscheduler(thread) for thread in threads} == {os.SCHED_IDLE}
        session = Path(f"/proc/{process.pid}/autogroup")
        if session.exists():
            assert session.read_text().split()[-1] == str(guardian.LEAST_NICENESS)
        standing_aside.step_forward(process.pid, 5)
        assert {os.sched_getscheduler(thread) for thread in threads} == {os.SCHED_OTHER}
        if session.exists():
            assert session.read_text().split()[-1] == "5"
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # with what it started
        process.communicate()


def test_a_group_that_is_gone_is_no_error() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""], start_new_session=True)
    gone.wait()
    standing_aside.step_forward(gone.pid, 3)
    assert standing_aside.threads(gone.pid) == []
    assert os.sched_getscheduler(0) == os.SCHED_OTHER
