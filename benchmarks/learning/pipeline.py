"""Policy learners of the Open Bandit Pipeline (``sb-obp`` 0.5.10), run in an environment of their own.

The package wants pandas < 3 and would move ours, so it is never installed beside the product::

    python3.11 -m venv OBP && OBP/bin/pip install sb-obp==0.5.10
    python -m benchmarks learning --obp-python OBP/bin/python --learner obp-ipw obp-nn ...

A task goes there and the chosen actions come back as arrays in two files; one process per cell, whose CPU
time is waited for and counted with the cell's.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.learning.features import standardized
from benchmarks.learning.tasks import Contestant, Outcome, Task
from triton_models.errors import BenchmarkError

WORKER = Path(__file__).with_name("obp_worker.py")
LAST_CHARACTERS = 400


def pipeline(name: str) -> Contestant:
    """A learner of :mod:`benchmarks.learning.obp_worker`."""

    def run(task: Task) -> Outcome:
        if task.obp_python is None:
            raise BenchmarkError(
                f"{name} runs in an environment of its own: python3.11 -m venv OBP && OBP/bin/pip install "
                "sb-obp==0.5.10, then --obp-python OBP/bin/python"
            )
        with tempfile.TemporaryDirectory() as folder:
            given, out = Path(folder) / "task.npz", Path(folder) / "chosen.npz"
            _write(task, given)
            _run([str(task.obp_python), str(WORKER), name, str(given), str(out)])
            with np.load(out) as file:
                return Outcome(chosen_nP=file["chosen"].astype(np.intp))

    return run


def _write(task: Task, file: Path) -> None:
    state_nD, asked_nD = standardized(task.surface, task.log, task.requests)
    np.savez(
        file,
        state=state_nD,
        asked=asked_nD,
        action=task.log["action"].astype(np.int64),
        rewards=task.log["rewards"].astype(np.float64),
        propensity=task.log["propensity"].astype(np.float64),
        scalarizations=task.scalarization_PM,
        actions=task.surface.num_actions,
        seed=task.seed,
    )


def _run(command: list[str]) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    except OSError as error:
        raise BenchmarkError(f"{command[0]}: cannot be run ({error}); --obp-python names it") from error
    if done.returncode:
        last = done.stderr.strip()[-LAST_CHARACTERS:]
        raise BenchmarkError(f"{command[0]}: {WORKER.name} ended with {done.returncode}: {last}")
