"""The stack is found again by process id and start time, and nothing else is ever ended."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest

from benchmarks.stack import Stack, find_stack, start_stack, stop_stack
from triton_models.errors import BenchmarkError
from triton_models.files import write_json


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


def record(folder: Path, process: subprocess.Popen[bytes], *, shift_s: float = 0.0) -> None:
    created = psutil.Process(process.pid).create_time() + shift_s
    stack = Stack(pid=process.pid, created=created, address="http://127.0.0.1:1", details={})
    write_json(folder / "stack.json", asdict(stack))


def test_nothing_runs_in_a_new_folder(tmp_path: Path) -> None:
    assert find_stack(tmp_path) is None
    assert stop_stack(tmp_path) is False


def test_the_recorded_process_is_ended(tmp_path: Path, bystander: subprocess.Popen[bytes]) -> None:
    record(tmp_path, bystander)
    assert find_stack(tmp_path) is not None
    assert stop_stack(tmp_path) is True
    assert not psutil.pid_exists(bystander.pid)
    assert find_stack(tmp_path) is None


def test_a_process_that_only_shares_the_id_is_left_alone(
    tmp_path: Path, bystander: subprocess.Popen[bytes]
) -> None:
    record(tmp_path, bystander, shift_s=-3600)
    assert stop_stack(tmp_path) is False
    assert bystander.poll() is None


def test_a_damaged_state_file_is_no_stack(tmp_path: Path) -> None:
    (tmp_path / "stack.json").write_text('{"pid": 1')
    assert find_stack(tmp_path) is None


def test_a_second_stack_for_one_folder_is_refused(tmp_path: Path, bystander: subprocess.Popen[bytes]) -> None:
    record(tmp_path, bystander)
    with pytest.raises(BenchmarkError, match="already running"):
        start_stack(tmp_path, [])


def test_a_stack_that_ends_at_once_is_reported_with_its_last_line(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match=r"ended with code 2: .*no-such-option"):
        start_stack(tmp_path, ["--no-such-option"])
    assert find_stack(tmp_path) is None
