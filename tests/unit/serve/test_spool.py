"""The spool: owners, torn tails, and what dead processes leave."""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.decision_batch import to_batch
from serve.decision_log import DecisionLog
from serve.decision_record import KEPT, DecisionRecord
from serve.segments import write_segment
from serve.shipper import Shipper
from serve.spool import Ownership, SpoolFile, SpoolName, SpoolReader, new_owner, spool_files
from tests.support.decisions import SURFACE, answer_of, log_config, logged_ids, record_of
from triton_models.decision_format import decision_schema
from triton_models.encoding import encode_state

SCHEMA = decision_schema(SURFACE)


def ship(folder: Path, **changes: Any) -> Shipper:
    """A round of another process."""
    shipper = Shipper(log_config(folder, **changes), owner=new_owner(), finished=deque())
    shipper.work()
    return shipper


def dead_process(folder: Path, ids: str) -> Path:
    """A spool file whose owner is gone."""
    spool = folder / "_spool"
    spool.mkdir(parents=True, exist_ok=True)
    file = SpoolFile(spool, SpoolName(new_owner(), 1, "2026-05-01T07"), SCHEMA)
    for request_id in ids:
        file.append(to_batch(SURFACE, SCHEMA, [record_of(request_id)]))
    file.close()
    return file.path


def test_names_say_where_the_segment_goes() -> None:
    name = SpoolName("host_1_ab", 12, "2026-05-01T07")
    assert name.file == "host_1_ab-000012.2026-05-01T07.arrows"
    assert name.segment == "date=2026-05-01/hour=07/host_1_ab-000012.parquet"
    assert SpoolName.parse(name.file) == name
    for other in ("x.lock", "x.arrows", name.file + ".parquet.part", "../a-000001.2026-05-01T07.arrows"):
        assert SpoolName.parse(other) is None


def test_an_owner_is_alone_while_it_lives(tmp_path: Path) -> None:
    first = Ownership.claim(tmp_path, "a")
    assert first is not None
    assert Ownership.claim(tmp_path, "a") is None
    first.release(done=False)
    heir = Ownership.claim(tmp_path, "a")
    assert heir is not None
    heir.release(done=True)
    assert list(tmp_path.iterdir()) == []


def test_whatever_is_cut_off_the_whole_batches_are_read(tmp_path: Path) -> None:
    path = dead_process(tmp_path, "abcd")
    data = path.read_bytes()
    ends = [SCHEMA.serialize().size]
    for request_id in "abcd":
        ends.append(ends[-1] + to_batch(SURFACE, SCHEMA, [record_of(request_id)]).serialize().size)
    assert ends[-1] == len(data)
    for cut in {*range(0, len(data), 41), *ends, *(end - 1 for end in ends), *(end + 1 for end in ends[:-1])}:
        path.write_bytes(data[:cut])
        reader = SpoolReader(path)
        ids = [name for batch in reader for name in batch["request_id"].to_pylist()]
        whole = sum(cut >= end for end in ends[1:])
        assert ids == list("abcd")[:whole], cut
        last = max((end for end in ends if end <= cut), default=0)
        assert reader.torn_bytes == cut - last


def test_a_tail_of_zeros_or_rubbish_is_a_torn_tail(tmp_path: Path) -> None:
    for tail in (bytes(5000), os.urandom(5000), b"\xff\xff\xff\xff" + os.urandom(300)):
        path = dead_process(tmp_path, "ab")
        with path.open("ab") as file:
            file.write(tail)
        assert sum(batch.num_rows for batch in SpoolReader(path)) == 2


def test_files_of_the_dead_are_finished_once(tmp_path: Path) -> None:
    for ids in ("abc", "d", ""):
        dead_process(tmp_path, ids)
    (tmp_path / "_spool" / "gone_1_00.lock").touch()
    torn = dead_process(tmp_path, "ef")
    with torn.open("ab") as file:
        file.truncate(torn.stat().st_size - 5)
    shipper = ship(tmp_path)
    assert logged_ids(tmp_path) == list("abcde")
    assert (shipper.recovered_rows, shipper.segments) == (5, 3)
    assert list((tmp_path / "_spool").iterdir()) == []
    assert {path.parts[-3] for path in tmp_path.rglob("*.parquet")} == {"date=2026-05-01"}


def test_the_living_are_left_alone(tmp_path: Path) -> None:
    log = DecisionLog(SURFACE, log_config(tmp_path))
    log.put(record_of("mine"))
    log.flush()
    assert ship(tmp_path).segments == 0
    assert len(spool_files(tmp_path / "_spool")) == 1
    log.close()
    assert logged_ids(tmp_path) == ["mine"]


def test_segments_of_a_large_file_are_made_in_row_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve.segments.ROW_GROUP_BYTES", 4000)
    path = dead_process(tmp_path, "".join(chr(0x4E00 + i) for i in range(40)))
    segment = write_segment(path, tmp_path / "x.part")
    assert segment.rows == 40
    metadata = pq.read_metadata(tmp_path / "x.part")
    assert metadata.num_row_groups > 2
    assert pq.read_schema(tmp_path / "x.part").metadata == SCHEMA.metadata


# ---------------------------------------------------------------- what is written reads back the same

WORDS = st.text(st.characters(codec="utf-8"), max_size=12)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
SINGLES = st.floats(width=32, allow_nan=False, allow_infinity=False)


def _vector(size: int) -> st.SearchStrategy[list[float]]:
    return st.lists(SINGLES, min_size=size, max_size=size)


HISTORY_ENTRIES = st.lists(
    st.tuples(_vector(3), st.sampled_from(["save", "click", "unheard of"]), SINGLES), max_size=9
)
ANSWERS = st.fixed_dictionaries(
    {
        "weights": st.fixed_dictionaries({"repin": NUMBERS, "p2p": NUMBERS}),
        "action": st.none() | st.integers(0, 8),
        "values": st.none() | st.fixed_dictionaries({"repin": NUMBERS, "p2p": NUMBERS}),
        "source": st.sampled_from(["value_network", "production", "static", "exploration"]),
        "reason": st.none() | st.just("late"),
        "arm": WORDS,
        "policy_version": st.integers(0, 2**63 - 1),
        "propensity": st.none() | NUMBERS,
        "scalarization": st.none() | st.fixed_dictionaries({"repin": NUMBERS, "p2p": NUMBERS}),
    }
)


@st.composite
def records(draw: st.DrawFn) -> tuple[DecisionRecord, list[Any] | None]:
    """A record, and the history entries that its state was made of (None: no state)."""
    entries = draw(st.none() | HISTORY_ENTRIES)
    tensors, context = None, ()
    if entries is not None:
        columns = {
            name: [entry[i] for entry in entries] for i, name in enumerate(("embedding", "action", "age_s"))
        }
        tensors = encode_state(SURFACE, {"user_embedding": draw(_vector(4)), "history": columns})
        context = (draw(st.none() | WORDS), draw(st.none() | WORDS))
    answer = {**answer_of(), **draw(ANSWERS)}
    made = DecisionRecord(
        request_id=draw(WORDS),
        timestamp_us=draw(st.integers(0, 4_000_000_000_000_000)),
        user_id=draw(st.none() | WORDS),
        cohort=draw(st.none() | WORDS),
        route="rank",
        answer={name: answer[name] for name in KEPT},
        tensors=tensors,
        context=context,
        frontier_fingerprint=draw(st.none() | WORDS),
        run_id=draw(st.none() | WORDS),
        log_probability=draw(st.floats(0.01, 1.0)),
        trace_id=None,
    )
    return made, entries


def _expected(record: DecisionRecord, entries: list[Any] | None) -> dict[str, Any]:
    answer, tensors = record.answer, record.tensors
    used = [entry for entry in entries or [] if entry[1] != "unheard of"][-5:]
    history: dict[str, Any] = dict.fromkeys(("history_embedding", "history_action", "history_age_s"))
    if entries is not None:
        history = {
            "history_embedding": [entry[0] for entry in used],
            "history_action": [entry[1] for entry in used],
            "history_age_s": [max(0.0, entry[2]) for entry in used],
        }
    return {
        **{name: getattr(record, name) for name in ("request_id", "user_id", "cohort", "run_id")},
        **{name: answer[name] for name in ("action", "reason", "arm", "policy_version", "propensity")},
        **{f"weight_{head}": weight for head, weight in answer["weights"].items()},
        **{f"value_{name}": (answer["values"] or {}).get(name) for name in SURFACE.objectives},
        "scalarization": None if answer["scalarization"] is None else list(answer["scalarization"].values()),
        "user_embedding": None if tensors is None else tensors["user_embedding"].tolist(),
        **history,
        "context_device": record.context[0] if record.context else None,
        "explored": answer["source"] == "exploration",
        "log_probability": record.log_probability,
    }


@settings(max_examples=60)
@given(st.lists(st.lists(records(), min_size=1, max_size=5), max_size=4))
def test_what_is_written_reads_back_the_same(batches: list[list[Any]]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        name = SpoolName("a", 1, "2026-05-01T07")
        file = SpoolFile(Path(folder), name, SCHEMA)
        for rows in batches:
            batch = to_batch(SURFACE, SCHEMA, [record for record, _ in rows])
            batch.validate(full=True)
            file.append(batch)
        file.close()
        part = Path(folder) / "x.parquet"
        segment = write_segment(file.path, part)
        expected = [_expected(*row) for rows in batches for row in rows]
        assert (segment.rows, segment.torn_bytes) == (len(expected), 0)
        found = pq.read_table(part).to_pylist() if expected else []
    stamps = [int(np.datetime64(row["timestamp"].replace(tzinfo=None), "us").astype(int)) for row in found]
    assert stamps == [record.timestamp_us for rows in batches for record, _ in rows]
    assert [{name: row[name] for name in expected[0]} for row in found] == expected


def test_a_batch_of_nothing_but_missing_states(tmp_path: Path) -> None:
    batch = to_batch(SURFACE, SCHEMA, [record_of("a")._replace(tensors=None, context=())])
    assert isinstance(batch, pa.RecordBatch)
    assert batch["history_embedding"].to_pylist() == [None]
