"""The decision log's promise: after ``kill -9`` nothing older than a second is lost, and nothing is torn."""

from __future__ import annotations

import io
import os
import random
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from serve.decision_batch import to_batch
from serve.decision_log import DecisionLog
from serve.shipper import Shipper
from serve.spool import SpoolFile, SpoolName, new_owner
from tests.support.decisions import SURFACE, log_config, logged_ids, record_of
from tests.support.object_store import object_store
from triton_models.decision_format import decision_schema

PROMISE_S = 1.0


def ship(folder: Path) -> None:
    Shipper(log_config(folder), owner=new_owner(), finished=deque()).work()


@contextmanager
def logging_process(folder: Path, name: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "tests.support.killed_log", str(folder), name, "1500"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None and process.stderr is not None
            assert process.stdout.readline() == b"ready\n", process.stderr.read()
            yield process
        finally:
            process.kill()


def kill_after(process: subprocess.Popen[bytes], pause_s: float) -> tuple[float, list[list[bytes]]]:
    """When it was killed, and the lines that it had said."""
    killed = []

    def kill() -> None:
        killed.append(time.monotonic())
        process.kill()

    # Read meanwhile: a process that waits for its reader logs nothing.
    timer = threading.Timer(pause_s, kill)
    timer.start()
    output, errors = process.communicate(timeout=60)
    timer.join()
    assert process.returncode == -9, errors
    return killed[0], [line.split() for line in output.splitlines(keepends=True) if line.endswith(b"\n")]


def test_kills_under_load_cost_less_than_a_second_of_records(tmp_path: Path) -> None:
    """Two processes at a time share the folder; each round also recovers what the last one left."""
    moments = random.Random(4)
    promised: set[str] = set()
    offered = 0
    for number in range(4):
        names = [f"{number}{side}" for side in "ab"]
        pauses = [moments.uniform(1.1, 3.0) for _ in names]
        with (
            logging_process(tmp_path, names[0]) as a,
            logging_process(tmp_path, names[1]) as b,
            ThreadPoolExecutor() as pool,
        ):
            ends = list(pool.map(kill_after, (a, b), pauses))
        for name, (killed_s, said) in zip(names, ends, strict=True):
            offered += sum(int(count) for _, _, count in said)
            promised |= {
                f"{name}.{i}"
                for at_s, first, count in said
                if float(at_s) < killed_s - PROMISE_S
                for i in range(int(first), int(first) + int(count))
            }
    left = len(list((tmp_path / "_spool").iterdir()))
    ship(tmp_path)
    found = logged_ids(tmp_path)  # reads every segment whole: a torn one is an error
    lost = promised - set(found)
    segments = len(list(tmp_path.rglob("*.parquet")))
    print(  # noqa: T201
        f"8 kills: offered {offered}, older than a second {len(promised)}, of these lost {len(lost)}; "
        f"found {len(found)} in {segments} segments, torn 0; files left by the last kills {left}"
    )
    assert promised, "no process lived longer than a second"
    assert not lost
    assert len(set(found)) == len(found), "rows were repeated"
    assert left > 0
    assert list((tmp_path / "_spool").iterdir()) == []
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".parquet"]


CRASH = """
import os, sys
from pathlib import Path
from tests.integration.serve.test_decision_log_kill import ship
from tests.support.killing import die_before
folder = Path(sys.argv[1])
for step in range(1, 100):
    child = os.fork()
    if child == 0:
        die_before(step, under=folder)
        ship(folder)
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        print(step)
        break
"""


def test_dying_before_any_step_of_a_recovery_repeats_nothing(tmp_path: Path) -> None:
    """Each attempt gets one step further than the one before it, over what that one has left."""
    schema, spool = decision_schema(SURFACE), tmp_path / "_spool"
    spool.mkdir()
    for ids in ("abc", "d"):
        file = SpoolFile(spool, SpoolName(new_owner(), 1, "2026-05-01T07"), schema)
        file.append(to_batch(SURFACE, schema, [record_of(name) for name in ids]))
        file.close()
    command = [sys.executable, "-c", CRASH, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert int(done.stdout) > 8
    assert logged_ids(tmp_path) == list("abcd")
    assert list(spool.iterdir()) == []


# ------------------------------------------------------------------------------------------ a full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real filesystem of four megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("a small disk can be mounted by root only")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path, leave_bytes: int) -> Path:
    """A file that takes what is free, but for a rest."""
    filler = disk / "filler"
    space = os.statvfs(disk)
    filler.write_bytes(bytes(max(0, space.f_bavail * space.f_frsize - leave_bytes)))
    return filler


def test_a_full_disk_costs_records_and_nothing_else(small_disk: Path) -> None:
    log = DecisionLog(SURFACE, log_config(small_disk / "log", flush_s=0.01, segment_rows=200))
    log.start()
    number = 0

    def offer_until(done: Callable[[], int]) -> None:
        nonlocal number
        deadline_s, before = time.monotonic() + 60, done()
        while done() - before < 300:
            assert log.put(record_of(str(number))), "the request path felt the disk"
            number += 1
            time.sleep(0.0005)
            assert time.monotonic() < deadline_s, log.describe()

    offer_until(lambda: log.writer.written)
    filler = fill(small_disk, 40_000)
    offer_until(lambda: log.dropped["disk_full"])
    filler.unlink()
    offer_until(lambda: log.writer.written)
    log.close()
    assert log.dropped["write_error"] == log.dropped["invalid_record"] == 0
    rows = logged_ids(small_disk / "log")
    assert len(rows) == len(set(rows)) == log.writer.written == number - log.dropped["disk_full"]


def test_room_is_left_on_the_disk_for_others(small_disk: Path) -> None:
    log = DecisionLog(SURFACE, log_config(small_disk / "log", min_free_bytes=3_000_000))
    for number in range(4000):
        log.put(record_of(str(number)))
        if number % 100 == 0:
            log.flush()
    log.flush()
    space = os.statvfs(small_disk)
    assert log.dropped["disk_full"] > 0
    assert space.f_bavail * space.f_frsize > 2_900_000
    log.close()
    assert len(logged_ids(small_disk / "log")) == log.writer.written


# ------------------------------------------------------------------------------------------ other storage


def test_segments_go_through_a_filesystem_by_uri(tmp_path: Path) -> None:
    """``file://`` takes the way of ``s3://`` and ``gs://``: a hidden name, then a move."""
    target = tmp_path / "bucket"
    log = DecisionLog(SURFACE, log_config(f"file://{target}", spool=str(tmp_path / "spool")))
    for name in "abc":
        log.put(record_of(name))
    log.close()
    assert logged_ids(target) == list("abc")
    names = [path.name for path in target.rglob("*") if path.is_file()]
    assert len(names) == 1
    assert names[0].endswith(".parquet")
    assert pq.read_schema(next(target.rglob("*.parquet"))).metadata[b"puts.surface"]


def test_segments_go_to_an_object_store_and_an_outage_is_made_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pyarrow's own S3 client; of the store only the protocol is real."""
    for name, value in {
        "ACCESS_KEY_ID": "x",
        "SECRET_ACCESS_KEY": "y",
        "EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    with object_store() as store:
        uri = store.uri("bucket/log")
        log = DecisionLog(SURFACE, log_config(uri, spool=str(tmp_path)))
        found: list[str] = []
        for name, away in (("a", False), ("b", True), ("c", False)):
            store.away = away
            log.put(record_of(name))
            log.flush()
            log.writer.end_file()
            deadline_s = time.monotonic() + 60
            while log.shipper.backlog and (log.shipper.last_error is None or not away):
                log.shipper.work()
                assert time.monotonic() < deadline_s, store.asked
            assert log.shipper.backlog == int(away)
        log.close()
        # The client marks folders with empty objects, whose keys end in a slash.
        segments = {key: data for key, data in store.objects.items() if not key.endswith("/")}
        for key, data in segments.items():
            assert key.startswith("/bucket/log/date=") and key.endswith(".parquet"), store.asked
            found += pq.read_table(io.BytesIO(data))["request_id"].to_pylist()
        assert sorted(found) == list("abc")
        assert log.shipper.failures > 0
    assert [path.name for path in tmp_path.iterdir()] == []
