"""R3 and R4 on records written down by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from benchmarks.chaos.logged import Logged, log_verdicts, read_log
from benchmarks.chaos.operations import MIN_FREE_BYTES, disk_fault, free_bytes, small_disk
from benchmarks.chaos.policies import PolicyCall, last_old_answers, policy_verdict
from benchmarks.load.records import Recorder, Records
from triton_models.errors import BenchmarkError


def load(version: Any = lambda at: 1) -> Records:
    """100 answers a second for 20 s from 1000 on, 20 ms each."""
    recorder = Recorder()
    for i in range(2000):
        due = 1000.0 + i / 100
        recorder.add(
            phase=0,
            number=i,
            due_s=due,
            sent_s=due,
            ended_s=due + 0.02,
            status=200,
            problem=0,
            source=0,
            reason=0,
            arm=0,
            version=version(due),
            retries=0,
        )
    return recorder.records(1000.0)


CALLS = [PolicyCall(called_s=1005.0, version=2), PolicyCall(called_s=1010.0, version=1)]


def test_the_last_answer_of_the_old_version_is_found_for_each_change() -> None:
    def version(at: float) -> int:
        # One replica changes at once, the other 0.4 s after the first call; back after 0.1 s.
        slow = round(at * 100) % 2 == 0
        return 2 if (1005.4 if slow else 1005.0) <= at < 1010.1 else 1

    first, second = last_old_answers(load(version), CALLS, 1020.0)
    assert first == pytest.approx(0.41, abs=0.025)
    assert second == pytest.approx(0.12, abs=0.025)
    verdict = policy_verdict(load(version), CALLS, 1020.0)
    assert verdict.hit and "0.40 s at most over 2" in verdict.line()


def test_a_slow_change_and_no_change_are_missed() -> None:
    slow = load(lambda at: 2 if at >= 1006.5 else 1)
    assert not policy_verdict(slow, CALLS[:1], 1020.0).hit
    assert not policy_verdict(slow, [], 1020.0).hit


def logged(missing: set[int], torn: tuple[str, ...] = ()) -> Logged:
    numbers = frozenset(set(range(2000)) - missing)
    return Logged(numbers=numbers, rows=len(numbers), files=3, torn=torn)


def test_only_what_is_older_than_a_second_must_survive_a_kill() -> None:
    # 950 to 996 were answered in the half second before the kill: young. 5 is nine seconds older.
    young = set(range(950, 997))
    lost, torn = log_verdicts(load(), logged(young), killed_s=[1010.0], excused=[])
    assert lost.hit and torn.hit
    assert "0 of 1,799, and 47 younger ones" in lost.line()
    lost, _ = log_verdicts(load(), logged(young | {5}), killed_s=[1010.0], excused=[])
    assert not lost.hit and "1 of 1,799" in lost.line()


def test_what_a_full_disk_dropped_is_not_charged_to_the_kill() -> None:
    lost, _ = log_verdicts(load(), logged(set(range(300, 500))), killed_s=[], excused=[(1003.5, 1006.0)])
    assert lost.hit


def test_a_torn_file_is_missed_and_an_empty_log_is_no_success() -> None:
    _, torn = log_verdicts(load(), logged(set(), ("a.parquet: cut off",)), killed_s=[], excused=[])
    assert not torn.hit and "cut off" in torn.line()
    nothing = Logged(numbers=frozenset(), rows=0, files=0, torn=())
    assert [v.hit for v in log_verdicts(load(), nothing, killed_s=[], excused=[])] == [False, False]


def test_segments_are_read_and_the_spool_is_passed_by(tmp_path: Path) -> None:
    hour = tmp_path / "date=2026-01-01" / "hour=03"
    spool = tmp_path / "_spool"
    for folder in (hour, spool):
        folder.mkdir(parents=True)
    parquet.write_table(pa.table({"request_id": ["7-r1", "8-r1", "other"]}), hour / "a-1.parquet")
    parquet.write_table(pa.table({"request_id": ["9-r1"]}), spool / "b.parquet")
    (hour / "a-2.parquet").write_bytes(b"PAR1 cut off")
    found = read_log(tmp_path)
    assert found.numbers == {7, 8}
    assert (found.rows, found.files, len(found.torn)) == (3, 2, 1)


@pytest.mark.parametrize("logged", [0, 1, 4096, 5000, 65_537])
def test_the_disk_is_filled_to_the_last_byte_whatever_lies_on_it(tmp_path: Path, logged: int) -> None:
    log = tmp_path / "decisions"
    with small_disk(log, print, MIN_FREE_BYTES + 2 * 1024**2) as mounted:
        if not mounted:
            pytest.skip("no file system may be mounted here")
        (log / "segment").write_bytes(bytes(logged))
        before = free_bytes(log)
        fault = disk_fault(log)
        fault.begin()
        assert free_bytes(log) == 0
        with pytest.raises(OSError, match="No space left"):
            (log / "more").write_bytes(b"x")
        fault.end()
        (log / "more").unlink(missing_ok=True)
        assert free_bytes(log) == before


def test_a_disk_that_was_full_before_or_did_not_stay_full_is_said_so(tmp_path: Path) -> None:
    log = tmp_path / "decisions"
    with small_disk(log, print, MIN_FREE_BYTES + 2 * 1024**2) as mounted:
        if not mounted:
            pytest.skip("no file system may be mounted here")
        (log / "segments").write_bytes(bytes(3 * 1024**2))
        fault = disk_fault(log)
        with pytest.raises(BenchmarkError, match="full before"):
            fault.begin()
        (log / "segments").write_bytes(b"")
        fault.begin()
        (log / "_filler").write_bytes(b"")
        with pytest.raises(BenchmarkError, match="did not stay full"):
            fault.end()
