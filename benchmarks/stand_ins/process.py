"""A stand-in as a process of its own: started, told what to do, killed, started again at its address."""

from __future__ import annotations

import json
import select
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.stand_ins.behaviour import Behaviour
from triton_models.errors import BenchmarkError

ANSWER_TIMEOUT_S = 30.0


class StandInProcess:
    """``python -m benchmarks standin KIND``; leaving the context ends it."""

    def __init__(self, kind: str, surface: Path, behaviour: Behaviour, address: str = "127.0.0.1:0") -> None:
        self.kind = kind
        self.address = address
        self.behaviour = behaviour
        self._surface = surface
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Process id.

        Raises:
            BenchmarkError: it does not run.
        """
        if self._process is None:
            raise BenchmarkError(f"the {self.kind} stand-in does not run")
        return self._process.pid

    def start(self) -> None:
        """Start it, at the address it had before if it had one.

        Raises:
            BenchmarkError: it did not start.
        """
        command = [sys.executable, "-m", "benchmarks", "standin", self.kind]
        command += ["--surface", str(self._surface), "--address", self.address]
        command += ["--behaviour", json.dumps(asdict(self.behaviour))]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self.address = str(self._read()["address"])

    def tell(self, behaviour: Behaviour) -> None:
        """Change how it behaves; in force when this returns.

        Raises:
            BenchmarkError: it does not run, or does not take it.
        """
        self.behaviour = behaviour
        process = self._process
        if process is None or process.stdin is None:
            raise BenchmarkError(f"the {self.kind} stand-in does not run")
        process.stdin.write(json.dumps(asdict(behaviour)) + "\n")
        process.stdin.flush()
        answer = self._read()
        if not answer.get("ok"):
            raise BenchmarkError(f"the {self.kind} stand-in refused: {answer.get('error')}")

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._end()

    def stop(self) -> None:
        """End it in order."""
        process = self._process
        if process is None:
            return
        if process.stdin is not None:
            with suppress(BrokenPipeError):
                process.stdin.close()
        try:
            process.wait(timeout=5.0)
        except subprocess.TimeoutExpired:
            process.kill()
        self._end()

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()

    def _read(self) -> dict[str, Any]:
        process = self._process
        if process is None or process.stdout is None:
            raise BenchmarkError(f"the {self.kind} stand-in does not run")
        readable, _, _ = select.select([process.stdout], [], [], ANSWER_TIMEOUT_S)
        line = process.stdout.readline() if readable else ""
        if not line:
            raise BenchmarkError(f"the {self.kind} stand-in at {self.address} does not answer or has ended")
        answer: dict[str, Any] = json.loads(line)
        return answer
