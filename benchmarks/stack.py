"""The serving stack as one background process: ``python -m serve up``, started, found again, ended.

``make up`` must be able to end in another shell what it started, and nothing else. The process is
therefore remembered by its id *and* its start time: an id that the system has given to somebody else
since does not match.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from triton_models.errors import BenchmarkError
from triton_models.files import write_json

START_TIMEOUT_S = 240.0
STOP_TIMEOUT_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Stack:
    """A running stack."""

    pid: int
    created: float
    """Start time of the process, seconds since the epoch, as the system reports it."""
    address: str
    """Base URL of the sidecar."""
    details: dict[str, Any]
    """What the stack wrote into its ready file."""


def _state_file(folder: Path) -> Path:
    return folder / "stack.json"


def find_stack(folder: Path) -> Stack | None:
    """The running stack that was started for ``folder``, if it still runs."""
    try:
        stack = Stack(**json.loads(_state_file(folder).read_text(encoding="utf-8")))
        process = psutil.Process(stack.pid)
        alive = process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        return stack if alive and abs(process.create_time() - stack.created) < 1.0 else None
    except (FileNotFoundError, ValueError, TypeError, psutil.NoSuchProcess, psutil.AccessDenied):
        return None


def start_stack(
    folder: Path, arguments: Sequence[str], environment: Mapping[str, str] | None = None
) -> Stack:
    """Start ``python -m serve up`` with ``arguments`` in a session of its own and wait until it is ready.

    Raises:
        BenchmarkError: one runs for this folder already, or it did not become ready.
    """
    if find_stack(folder) is not None:
        raise BenchmarkError(f"a stack is already running for {folder}; end it with make down")
    folder.mkdir(parents=True, exist_ok=True)
    ready, log = folder / "ready.json", folder / "stack.log"
    ready.unlink(missing_ok=True)
    command = [sys.executable, "-m", "serve", "up", *arguments, "--ready-file", str(ready)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"} | dict(environment or {}),
        )
    try:
        created = psutil.Process(process.pid).create_time()
        _wait_until_ready(process, ready, log)
    except BaseException:
        # Ctrl-C too: it runs in a session of its own, and nobody could find it again.
        process.terminate()
        process.wait(timeout=STOP_TIMEOUT_S)
        raise
    details = json.loads(ready.read_text(encoding="utf-8"))
    stack = Stack(pid=process.pid, created=created, address=details["address"], details=details)
    write_json(_state_file(folder), asdict(stack))
    return stack


def _wait_until_ready(process: subprocess.Popen[bytes], ready: Path, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not ready.exists():
        if process.poll() is not None:
            raise BenchmarkError(
                f"the stack ended with code {process.returncode}: {last_line(log)}; see {log}"
            )
        if time.monotonic() > deadline:
            raise BenchmarkError(f"the stack was not ready after {START_TIMEOUT_S:.0f} s; see {log}")
        time.sleep(0.2)


def stop_stack(folder: Path) -> bool:
    """End the stack of ``folder``; False if none runs.

    Raises:
        BenchmarkError: it did not end in time.
    """
    stack = find_stack(folder)
    if stack is None:
        return False
    process = psutil.Process(stack.pid)
    process.terminate()
    try:
        process.wait(timeout=STOP_TIMEOUT_S)
    except psutil.TimeoutExpired as error:
        raise BenchmarkError(
            f"process {stack.pid} did not end within {STOP_TIMEOUT_S:.0f} s; see {folder / 'stack.log'}"
        ) from error
    _state_file(folder).unlink(missing_ok=True)
    return True


def last_line(log: Path) -> str:
    """The last line of a log that says anything, for an error message."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "no output"
