from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from serve.decision_log import DecisionLog
from serve.decision_log_config import DecisionLogConfig
from serve.decision_log_metrics import DecisionLogMetrics
from serve.decision_record import log_probability, sampled
from serve.pseudonyms import pseudonym
from serve.spool import SpoolFile, spool_files
from tests.support.decisions import (
    STATE,
    SURFACE,
    answer_of,
    log_config,
    logged_ids,
    read_log,
    record_of,
    request_of,
)
from triton_models.decision_format import check_decisions
from triton_models.encoding import encode_state
from triton_models.errors import ConfigurationError

HOUR_US = 3_600_000_000


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Storage:
    """A store that can be away."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.away: str | None = None
        self.tried = 0

    def put(self, file: Path, segment: str) -> None:
        self.tried += 1
        if self.away is not None:
            raise OSError(errno.ETIMEDOUT, self.away)
        target = self.root / segment
        target.parent.mkdir(parents=True, exist_ok=True)
        file.replace(target)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def opened(tmp_path: Path, clock: Clock) -> Iterator[Any]:
    logs = []

    def make(store: Any = None, **changes: Any) -> DecisionLog:
        log = DecisionLog(SURFACE, log_config(tmp_path / "log", **changes), store=store, clock=clock)
        logs.append(log)
        return log

    yield make
    for log in logs:
        log.close()


def offer(log: DecisionLog, request_id: str, answer: dict[str, Any] | None = None, **more: Any) -> bool:
    tensors = encode_state(SURFACE, STATE)
    settings = {"route": "rank", "tensors": tensors, **more}
    return log.record(request_of(request_id), answer or answer_of(), **settings)


def test_what_was_queued_is_in_a_segment_after_closing(opened: Any, tmp_path: Path) -> None:
    log = opened()
    assert offer(log, "a", run_id="r7", frontier_fingerprint="f", trace_id="0" * 31 + "1")
    assert offer(
        log, "b", answer_of(source="production", reason="late", action=None, values=None), tensors={}
    )
    assert offer(log, "c", answer_of(source="exploration", propensity=1 / 9, scalarization=None))
    assert log.queue_depth == 3
    log.close()
    assert log.queue_bytes == log.queue_depth == 0
    files = list((tmp_path / "log").rglob("*.parquet"))
    assert len(files) == 1
    assert [part.split("=")[0] for part in files[0].parts[-3:-1]] == ["date", "hour"]
    check_decisions(SURFACE, pq.read_schema(files[0]), source="x")
    a, b, c = read_log(tmp_path / "log").to_pylist()
    assert (a["run_id"], a["weight_p2p"], a["value_p2p"], a["explored"]) == ("r7", 30.0, 0.25, False)
    assert (a["context_device"], a["context_daypart"], a["scalarization"]) == ("phone", "dusk", [0.8, 0.2])
    assert (b["reason"], b["user_embedding"], b["history_action"], b["context_device"]) == ("late",) + (
        None,
    ) * 3
    assert (c["explored"], c["propensity"], c["log_probability"], c["scalarization"]) == (
        True,
        1 / 9,
        1.0,
        None,
    )
    assert list((tmp_path / "log" / "_spool").iterdir()) == []
    assert not offer(log, "late")
    assert log.dropped["closed"] == 1


def test_the_sample_is_a_share_and_explorations_are_all_in(opened: Any) -> None:
    log = opened(sample_rate=0.25)
    taken = sum(offer(log, f"r{i}") for i in range(4000))
    assert 860 <= taken <= 1140  # 1000 ± 5 σ
    assert all(offer(log, f"r{i}", answer_of(source="exploration")) for i in range(100))
    assert {record.log_probability for record in log._queue} == {0.25, 1.0}


def test_a_larger_sample_contains_the_smaller_one() -> None:
    ids = [str(i) for i in range(500)]
    small = {i for i in ids if sampled(i, 0.1)}
    assert small < {i for i in ids if sampled(i, 0.4)}
    assert not any(sampled(i, 0.0) for i in ids)
    assert log_probability({"source": "static"}, 0.1) == 0.1


def test_memory_is_bounded_in_records_and_in_bytes(opened: Any) -> None:
    log = opened(queue_records=5)
    assert [offer(log, str(i)) for i in range(7)] == [True] * 5 + [False] * 2
    assert log.dropped["queue_full"] == 2
    log.flush()
    assert offer(log, "again")
    one = log.queue_bytes
    small = opened(queue_bytes=3 * one)
    assert [offer(small, str(i)) for i in range(4)] == [True] * 3 + [False]
    assert small.dropped["queue_full"] == 1


def test_a_file_ends_with_the_hour_at_its_size_and_at_its_age(
    opened: Any, tmp_path: Path, clock: Clock
) -> None:
    log = opened(segment_rows=3, segment_s=60)

    def written() -> list[tuple[str, int]]:
        log.flush()
        log.shipper.work()
        files = sorted((tmp_path / "log").glob("date=*/hour=*/*.parquet"))
        return [(f"{p.parts[-3]} {p.parts[-2]}", pq.read_metadata(p).num_rows) for p in files]

    start = 490_000 * HOUR_US
    for i in range(3):
        log.put(record_of(str(i), timestamp_us=start + i))
    assert written() == [("date=2025-11-24 hour=16", 3)]
    log.put(record_of("3", timestamp_us=start + 5))
    assert len(written()) == 1
    log.put(record_of("4", timestamp_us=start + HOUR_US))
    assert written()[1:] == [("date=2025-11-24 hour=16", 1)]
    clock.now_s = 61.0
    assert written()[2:] == [("date=2025-11-24 hour=17", 1)]
    assert logged_ids(tmp_path / "log") == list("01234")


def test_a_record_keeps_no_body_alive(opened: Any) -> None:
    body = np.zeros(1_000_000, dtype=np.float32)
    tensors = encode_state(SURFACE, {**STATE, "user_embedding": body[:4]})
    assert tensors["user_embedding"].base is body
    log = opened()
    assert offer(log, "a", tensors=tensors)
    kept = log._queue[0].tensors
    assert kept is not None
    assert all(tensor.base is None for tensor in kept.values())


def test_a_storage_outage_keeps_the_spool_and_is_made_good(opened: Any, tmp_path: Path, clock: Clock) -> None:
    storage = Storage(tmp_path / "log")
    log = opened(storage, segment_rows=1, retry_s=1, retry_max_s=4)
    storage.away = "nobody there"
    for i in range(6):
        log.put(record_of(str(i)))
        log.flush()
        log.shipper.work()
    assert storage.tried == 1  # then it pauses
    for pause_s, tries in ((0.9, 1), (0.2, 2), (1.0, 2), (1.1, 3), (4.1, 4), (3.0, 4), (1.1, 5)):
        clock.now_s += pause_s
        log.shipper.work()
        assert storage.tried == tries
    assert log.describe()["storage_error"].endswith("nobody there")
    assert log.describe()["spool_files_waiting"] == 6
    storage.away = None
    clock.now_s += 4.1
    log.shipper.work()
    assert logged_ids(tmp_path / "log") == list("012345")
    assert log.describe()["storage_error"] is None
    assert sum(log.dropped.values()) == 0


def test_the_spool_is_bounded_while_the_storage_is_away(opened: Any, tmp_path: Path, clock: Clock) -> None:
    storage = Storage(tmp_path / "log")
    storage.away = "nobody there"
    log = opened(storage, segment_rows=1, spool_bytes=40_000)
    for i in range(100):
        log.put(record_of(str(i)))
        log.flush()
    kept = log.writer.written
    assert 3 < kept < 15
    assert log.dropped["spool_full"] == 100 - kept
    assert sum(p.stat().st_size for p in (tmp_path / "log" / "_spool").iterdir()) < 60_000
    storage.away = None
    clock.now_s += 100
    log.shipper.work()
    log.put(record_of("after"))
    log.flush()
    assert log.writer.written == kept + 1


def test_a_disk_that_refuses_costs_the_records_of_the_moment_only(
    opened: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = opened()
    log.put(record_of("before"))
    log.flush()
    write, refusing = os.write, [errno.ENOSPC, errno.EIO]

    def half_write(descriptor: int, data: Any) -> int:
        if not refusing:
            return write(descriptor, data)
        if len(data) > 100:  # a part goes in first, as on a real disk
            return write(descriptor, data[:100])
        raise OSError(refusing.pop(0), "refused")

    monkeypatch.setattr(os, "write", half_write)
    for name in ("lost", "lost too", "after"):
        log.put(record_of(name))
        log.flush()
    assert (log.dropped["disk_full"], log.dropped["write_error"], log.writer.written) == (1, 1, 2)
    log.close()
    assert logged_ids(tmp_path / "log") == ["after", "before"]


def test_what_was_written_is_forced_to_the_disk_beside_the_writer(
    opened: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forced: list[str] = []
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        forced.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))  # noqa: PTH119, PTH115
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    log = opened(fsync_s=1.0)
    for name in "abc":
        log.put(record_of(name))
        log.flush()
    assert forced == []
    log.writer.sync()
    file = spool_files(tmp_path / "log" / "_spool")[0].file
    assert forced == [file, "_spool"]
    log.writer.sync()
    assert forced == [file, "_spool"]  # nothing new
    log.put(record_of("d"))
    log.flush()
    log.writer.end_file()
    log.writer.sync()
    assert forced == [file, "_spool"] * 2
    log.put(record_of("e"))
    log.flush()
    log.writer.end_file()
    log.shipper.work()
    log.writer.sync()  # its segment was forced to the disk; the file is gone


def test_a_batch_that_cannot_be_taken_back_ends_its_file(
    opened: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = opened()
    log.put(record_of("before"))
    log.flush()

    def refuse(*_: Any) -> int:
        raise OSError(errno.EIO, "broken")

    with monkeypatch.context() as broken:
        broken.setattr(os, "write", refuse)
        broken.setattr(os, "ftruncate", refuse)
        log.put(record_of("lost"))
        log.flush()
    log.put(record_of("after"))
    log.flush()
    assert len(spool_files(tmp_path / "log" / "_spool")) == 2
    log.close()
    assert logged_ids(tmp_path / "log") == ["after", "before"]


def test_too_little_free_space_drops_before_the_disk_is_full(opened: Any) -> None:
    log = opened(min_free_bytes=2**62)
    log.put(record_of("x"))
    log.flush()
    assert log.dropped["disk_full"] == 1


def test_a_record_that_is_no_decision_does_not_take_the_others_with_it(opened: Any, tmp_path: Path) -> None:
    log = opened()
    for i in range(20):
        log.put(record_of(str(i)))
        if i % 7 == 3:
            log.put(record_of("bad", arm=None))
            log.put(record_of("\ud800"))
    log.close()
    assert log.dropped["invalid_record"] == 6
    assert logged_ids(tmp_path / "log") == sorted(map(str, range(20)))


def test_a_bug_of_the_log_costs_neither_the_answer_nor_the_memory(
    opened: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = opened()
    answer = answer_of()
    del answer["source"]
    assert not log.record(request_of("no answer"), answer, route="rank", tensors=None)
    assert log.dropped["invalid_record"] == 1

    def no_memory(*_: object) -> None:
        raise pa.ArrowMemoryError("malloc failed")

    append = SpoolFile.append
    monkeypatch.setattr(SpoolFile, "append", no_memory)
    log.put(record_of("lost"))
    log.flush()
    assert (log.dropped["write_error"], log.queue_bytes) == (1, 0)
    monkeypatch.setattr(SpoolFile, "append", append)
    log.put(record_of("after"))
    log.close()
    assert logged_ids(tmp_path / "log") == ["after"]


def test_a_folder_that_cannot_be_written_is_tried_again(opened: Any, tmp_path: Path) -> None:
    (tmp_path / "log").write_text("a file where the folder should be")
    log = opened()
    log.put(record_of("lost"))
    log.flush()
    log.shipper.work()
    assert log.dropped["write_error"] == 1
    (tmp_path / "log").unlink()
    log.put(record_of("kept"))
    log.close()
    assert logged_ids(tmp_path / "log") == ["kept"]


def test_user_ids_may_be_pseudonyms(opened: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match=r"environment variable PUTS_USER_SALT, got 0 bytes"):
        opened(user_ids="hashed")
    monkeypatch.setenv("PUTS_USER_SALT", "pepper")
    log = opened(user_ids="hashed")
    offer(log, "a")
    log.put(record_of("b")._replace(user_id=None))
    log.close()
    table = read_log(tmp_path / "log")
    assert table["user_id"].to_pylist() == [pseudonym("u1", b"pepper"), None]
    assert pseudonym("u1", b"pepper") != pseudonym("u1", b"salt")
    file = next((tmp_path / "log").rglob("*.parquet"))
    assert pq.read_schema(file).metadata[b"puts.user_ids"] == b"hashed"
    assert b"pepper" not in file.read_bytes()


def test_metrics_follow_the_log(opened: Any, tmp_path: Path) -> None:
    registry = CollectorRegistry()
    metrics = DecisionLogMetrics(registry)
    log = opened(queue_records=2)
    for i in range(3):
        log.put(record_of(str(i)))
    metrics.publish(log)
    log.flush()
    for _ in range(2):  # publishing twice counts nothing twice
        metrics.publish(log)
    text = generate_latest(registry).decode()
    assert 'puts_decision_log_dropped_total{reason="queue_full"} 1.0' in text
    assert "puts_decision_log_written_total 2.0" in text
    assert "puts_decision_log_queue_records 0.0" in text
    assert json.dumps(log.describe())


def test_the_threads_do_it_by_themselves(tmp_path: Path) -> None:
    log = DecisionLog(SURFACE, log_config(tmp_path / "log", flush_s=0.01))
    log.start()
    for i in range(300):
        offer(log, str(i))
    log.close()
    assert len(logged_ids(tmp_path / "log")) == 300


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"folder": "s3://bucket/log"}, "spool"),
        ({"folder": "/x", "spool": "s3://bucket/spool"}, "spool must be a local folder"),
        ({"folder": "/x", "flush_s": 0.6}, "flush_s"),
        ({"folder": "/x", "sample_rate": 1.5}, "sample_rate"),
        ({"folder": "/x", "retry_s": 50}, "retry_max_s"),
        ({"folder": ""}, "folder"),
    ],
)
def test_impossible_settings(settings: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        DecisionLogConfig.model_validate(settings)


def test_credentials_in_a_uri_are_not_shown() -> None:
    given = {"folder": "s3://key:secret@bucket/log?access_key=abc", "spool": "/tmp/x"}
    assert DecisionLogConfig.model_validate(given).shown_folder == "s3://bucket/log"


def test_an_open_file_takes_no_second_owner_of_its_name(tmp_path: Path, opened: Any) -> None:
    log = opened()
    log.put(record_of("a"))
    log.flush()
    name = spool_files(tmp_path / "log" / "_spool")[0]
    with pytest.raises(FileExistsError):
        SpoolFile(tmp_path / "log" / "_spool", name, log.writer._schema)
