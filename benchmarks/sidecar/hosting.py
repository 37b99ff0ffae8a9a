"""Sidecars under measurement: on Ray Serve as ``python -m serve up`` runs them, or under plain uvicorn."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.stack import Stack, last_line, start_stack, stop_stack
from serve.cluster import free_port
from triton_models.errors import BenchmarkError
from triton_models.files import write_json

START_TIMEOUT_S = 60.0


@contextmanager
def ray_sidecar(
    folder: Path, arguments: Sequence[str], environment: Mapping[str, str] | None = None
) -> Iterator[Stack]:
    """``python -m serve up``; ended on exit.

    Raises:
        BenchmarkError: it did not start.
    """
    stack = start_stack(folder, [*arguments, "--port", "0"], environment=environment)
    try:
        yield stack
    finally:
        stop_stack(folder)


@contextmanager
def plain_sidecar(folder: Path, config: dict[str, Any]) -> Iterator[str]:
    """The same application under uvicorn; its address.

    Raises:
        BenchmarkError: it did not start.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port("127.0.0.1")
    file = folder / "sidecar.json"
    write_json(file, config | {"http": {"host": "127.0.0.1", "port": port}})
    with python_server(folder / "sidecar.log", ["benchmarks.sidecar.plain", str(file)], port) as address:
        yield address


@contextmanager
def python_server(
    log: Path, command: Sequence[str], port: int, environment: Mapping[str, str] | None = None
) -> Iterator[str]:
    """``python -m …`` that answers ``/healthz`` on a port; its address; ended on exit.

    Raises:
        BenchmarkError: it ended or did not answer in time.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | dict(environment or {}),
        )
    try:
        address = f"http://127.0.0.1:{port}"
        _wait_until_healthy(process, address, log)
        yield address
    finally:
        process.terminate()
        try:
            process.wait(timeout=15.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_healthy(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        if process.poll() is not None:
            raise BenchmarkError(f"the server ended with code {process.returncode}: {last_line(log)}")
        try:
            with urllib.request.urlopen(f"{address}/healthz", timeout=5.0):
                return
        except urllib.error.HTTPError as error:
            error.close()
            return  # it answers; whether /healthz exists does not matter
        except (urllib.error.URLError, OSError):
            if time.monotonic() > deadline:
                raise BenchmarkError(
                    f"no server at {address} after {START_TIMEOUT_S:.0f} s; see {log}"
                ) from None
        time.sleep(0.05)
