from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ray_train.ingest import encode_training
from ray_train.logs import discover_files
from ray_train.reading import CleanReader, Unit, list_units
from ray_train.shards import (
    EncodeTask,
    compact,
    group_units,
    row_bytes,
    sample,
    sample_units,
    shuffled_batches,
    stream,
)
from tests.support.logs import START, make_log, write_log
from tests.support.surfaces import small_surface

SURFACE = small_surface()
NOW = START + timedelta(days=30)


def units(*rows: int) -> tuple[Unit, ...]:
    return tuple(Unit(path="x", row_group=i, rows=n, first=None, last=None) for i, n in enumerate(rows))


@given(
    blocks=st.lists(st.integers(1, 40), max_size=8),
    batch=st.integers(2, 17),
    pool=st.integers(1, 60),
    seed=st.integers(0, 3),
)
def test_batches_are_full_and_hold_no_row_twice(blocks: list[int], batch: int, pool: int, seed: int) -> None:
    total = sum(blocks)
    ids = np.split(np.arange(total), np.cumsum(blocks)[:-1]) if blocks else []

    def run() -> list[list[int]]:
        rng = np.random.default_rng(seed)
        parts = [{"action": part, "x": part * 2} for part in ids]
        return [b["action"].tolist() for b in shuffled_batches(parts, batch, rng, pool) if check(b)]

    def check(b: dict[str, np.ndarray]) -> bool:
        np.testing.assert_array_equal(b["x"], 2 * b["action"])
        return True

    found = run()
    assert found == run()
    flat = [row for b in found for row in b]
    assert len(flat) == len(set(flat))
    if total < batch:  # every worker must make at least one step
        assert sorted(flat) == list(range(total))
    else:
        assert all(len(b) == batch for b in found)
        assert len(found) == total // batch


def test_rows_are_shuffled() -> None:
    block = {"action": np.arange(1000)}
    first = next(shuffled_batches([block], 1000, np.random.default_rng(0)))["action"]
    second = next(shuffled_batches([block], 1000, np.random.default_rng(1)))["action"]
    assert first.tolist() != second.tolist() != list(range(1000))


def test_tasks_are_neighbouring_units_of_enough_rows() -> None:
    grouped = group_units(units(4, 4, 4, 10, 1, 1), rows=8)
    assert [[unit.row_group for unit in task] for task in grouped] == [[0, 1], [2, 3], [4, 5]]
    assert group_units((), rows=8) == ()


def test_samples_skip_units_of_a_large_log() -> None:
    assert [unit.row_group for unit in sample_units(units(*[100] * 12), 100)] == [0, 3, 6, 9]
    assert len(sample_units(units(*[100] * 12), 1000)) == 12


def reader(tmp_path: Path, rows: int) -> tuple[CleanReader, tuple[Unit, ...]]:
    files = discover_files(write_log(make_log(SURFACE, rows), tmp_path))
    found = list_units(SURFACE, files)
    window = (START, NOW)
    return CleanReader(surface=SURFACE, files=files, window=window, now=NOW, duplicates={}), found


def test_a_task_encodes_the_rows_of_its_units(tmp_path: Path) -> None:
    clean, found = reader(tmp_path, 3000)
    encode = EncodeTask(reader=clean, tasks=group_units(found, rows=1500))
    blocks = [block for n in range(len(encode.tasks)) for block in encode({"item": np.array([n])})]
    whole = compact(SURFACE, encode_training(SURFACE, make_log(SURFACE, 3000)))
    for name, array in whole.items():
        np.testing.assert_array_equal(np.concatenate([block[name] for block in blocks]), array)
    assert sum(array.nbytes for array in whole.values()) == 3000 * row_bytes(SURFACE)


def test_a_share_of_rows_is_drawn_by_their_ids(tmp_path: Path) -> None:
    clean, found = reader(tmp_path, 4000)

    def drawn(share: float, seed: int) -> int:
        encode = EncodeTask(reader=clean, tasks=(found,), share=share, seed=seed)
        return sum(len(block["action"]) for block in encode({"item": np.array([0])}))

    assert abs(drawn(0.25, 0) - 1000) < 120  # 4.4 standard deviations
    assert drawn(0.25, 0) == drawn(0.25, 0)
    assert drawn(1.0, 0) == 4000


def test_a_sample_is_spread_over_the_window(tmp_path: Path) -> None:
    clean, found = reader(tmp_path, 3000)
    rows = sample(clean, found, rows=300, seed=0)
    assert rows is not None
    assert len(rows["action"]) == 300
    everything = sample(clean, found, rows=10_000, seed=0)
    assert everything is not None
    assert len(everything["action"]) == 3000


def test_a_stream_is_every_row_of_the_window_a_slice_at_a_time(tmp_path: Path) -> None:
    clean, found = reader(tmp_path, 20_000)
    slices = list(stream(clean, found, rows=None, seed=0))
    assert len(slices) > 1
    whole = compact(SURFACE, encode_training(SURFACE, make_log(SURFACE, 20_000)))
    for name, array in whole.items():
        np.testing.assert_array_equal(np.concatenate([rows[name] for rows in slices]), array)
    some = sum(len(rows["action"]) for rows in stream(clean, found, rows=5000, seed=0))
    assert abs(some - 5000) < 270  # 4.4 standard deviations
