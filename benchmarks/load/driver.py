"""Runs a plan in a Locust process of its own and reads back what it saw."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from benchmarks.load.plan import Plan
from benchmarks.load.records import Records, load_records
from triton_models.errors import BenchmarkError

LOCUSTFILE = Path(__file__).parent / "scheduled.py"
START_TIMEOUT_S = 60.0
END_TIMEOUT_S = 60.0


class LoadRun:
    """A load under way. Leaving the context ends it."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        self.plan = plan
        self.folder = folder.resolve()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in ("began.json", "records.npz", "stop"):
            (self.folder / name).unlink(missing_ok=True)
        self.plan.write(self.folder / "plan.json")
        environment = {name: value for name, value in os.environ.items() if not name.startswith("LOCUST_")}
        environment["PUTS_LOAD_FOLDER"] = str(self.folder)
        environment["PYTHONPATH"] = str(LOCUSTFILE.parents[2])
        # One thread of BLAS and co.: this process shares the machine with what it measures.
        environment |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        with (self.folder / "locust.log").open("wb") as log:
            self._process = subprocess.Popen(
                self._command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env=environment,
            )
        return self

    def _command(self) -> list[str]:
        command = [sys.executable, "-m", "locust", "--locustfile", str(LOCUSTFILE), "--headless"]
        command += ["--users", "1", "--spawn-rate", "1", "--host", self.plan.phases[0].url]
        command += ["--run-time", f"{int(self.plan.seconds) + 120}s", "--stop-timeout", "1"]
        command += ["--exit-code-on-error", "0", "--loglevel", "WARNING", "--only-summary"]
        return [*command, "--html", str(self.folder / "locust.html")]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(timeout=10.0)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def wait_until_begun(self) -> float:
        """When the first phase begins, on the monotonic clock.

        Raises:
            BenchmarkError: Locust did not start.
        """
        deadline = time.monotonic() + START_TIMEOUT_S
        path = self.folder / "began.json"
        while not path.exists():
            self._require_alive()
            if time.monotonic() > deadline:
                raise BenchmarkError(f"Locust did not start within {START_TIMEOUT_S:.0f} s; see {self._log}")
            time.sleep(0.05)
        return float(json.loads(path.read_text(encoding="utf-8"))["began_s"])

    def stop(self) -> None:
        """Ask it to end now; what it saw is kept."""
        (self.folder / "stop").touch()

    def records(self) -> Records:
        """Wait for the end.

        Raises:
            BenchmarkError: it did not end in order.
        """
        process = self._process
        if process is None:
            raise BenchmarkError("the load was not started")
        limit_s = self.plan.seconds + START_TIMEOUT_S + END_TIMEOUT_S
        try:
            code = process.wait(timeout=limit_s)
        except subprocess.TimeoutExpired as error:
            raise BenchmarkError(f"Locust did not end within {limit_s:.0f} s; see {self._log}") from error
        if code:
            raise BenchmarkError(f"Locust ended with code {code}; see {self._log}")
        return load_records(self.folder / "records.npz")

    def _require_alive(self) -> None:
        if self._process is not None and self._process.poll() is not None:
            raise BenchmarkError(f"Locust ended with code {self._process.returncode}; see {self._log}")

    @property
    def _log(self) -> Path:
        return self.folder / "locust.log"


def run_load(plan: Plan, folder: Path) -> Records:
    """The whole plan, and what came of it.

    Raises:
        BenchmarkError: Locust did not run it to its end.
    """
    with LoadRun(plan, folder) as load:
        return load.records()
