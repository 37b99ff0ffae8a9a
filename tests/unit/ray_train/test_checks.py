from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_train.checks import LogReport, Totals
from ray_train.duplicates import hash_strings, later_occurrences
from ray_train.logs import LogFiles, discover_files
from ray_train.planning import examine
from ray_train.quarantine import write_quarantine
from ray_train.reading import CleanReader, Unit, Window, list_units
from ray_train.rows import Reason
from ray_train.sample_ratio import sample_ratio
from ray_train.summary import ratio_line
from tests.support.logs import START, make_log, replace_cell, write_log
from tests.support.surfaces import small_surface
from triton_models.errors import LogError

SURFACE = small_surface()
DAY = timedelta(days=1)
NOW = START + 30 * DAY
WINDOW = (START, NOW)


def examined(folder: Path, **options: Any) -> tuple[LogFiles, LogReport]:
    files = discover_files(folder)
    return files, examine(SURFACE, files, list_units(SURFACE, files), now=NOW, **options)


def clean(folder: Path, window: Window = WINDOW) -> tuple[tuple[Unit, ...], list[pa.Table]]:
    """The units that a reader of the window opens, and its rows."""
    files, report = examined(folder)
    reader = CleanReader(surface=SURFACE, files=files, window=window, now=NOW, duplicates=report.duplicates)
    units = reader.units(list_units(SURFACE, files))
    return units, [table for unit in units for table in reader.tables(unit)]


def spoiled() -> pa.Table:
    """3000 rows, of which five are bad: two ids occur again, in other files and row groups."""
    table = make_log(SURFACE, 3000)
    table = replace_cell(table, "request_id", 2500, "r0-3")
    table = replace_cell(table, "request_id", 2900, "r0-1500")
    table = replace_cell(table, "propensity", 10, None)
    table = replace_cell(table, "propensity", 1200, 2.0)
    return replace_cell(table, "weight_repin", 1700, 33.0)


def test_bad_rows_are_counted_by_reason_across_files(tmp_path: Path) -> None:
    _, report = examined(write_log(spoiled(), tmp_path, files=3, row_group_rows=300))
    assert report.rows == 3000
    assert report.by_reason() == {"off_grid_weights": 1, "bad_propensity": 2, "duplicate_id": 2}
    assert report.bad == 5
    assert report.good == 2995
    assert [str(example) for example in report.examples][:1] == [
        f"r0-10 in {tmp_path}/part-000.parquet: bad_propensity"
    ]


def test_clean_rows_are_each_good_row_once(tmp_path: Path) -> None:
    folder = write_log(spoiled(), tmp_path, files=3, row_group_rows=300)
    ids = [name for table in clean(folder)[1] for name in table["request_id"].to_pylist()]
    bad = {10, 1200, 1700, 2500, 2900}
    assert ids == [f"r0-{i}" for i in range(3000) if i not in bad]


def test_only_the_window_is_read(tmp_path: Path) -> None:
    folder = write_log(make_log(SURFACE, 3000), tmp_path, row_group_rows=100)
    units, tables = clean(folder, (START + 5 * DAY, START + 6 * DAY))
    assert 1 < len(units) < 6  # of 30: the others' statistics lie outside
    stamps = [stamp for table in tables for stamp in table["timestamp"].to_pylist()]
    expected = [s for s in make_log(SURFACE, 3000)["timestamp"].to_pylist() if 5 <= (s - START) / DAY < 6]
    assert stamps == expected
    assert clean(folder, (START - 2 * DAY, START - DAY)) == ((), [])


def test_time_segments_count_good_rows_without_duplicates(tmp_path: Path) -> None:
    table = spoiled()
    edges = [START + 7 * DAY, START + 14 * DAY]
    _, report = examined(write_log(table, tmp_path, row_group_rows=500), edges=edges)
    day = np.array([(stamp - START) / DAY for stamp in table["timestamp"].to_pylist()])
    good = np.ones(3000, dtype=bool)
    good[[10, 1200, 1700, 2500, 2900]] = False
    expected = [(good & (day < 7)).sum(), (good & (day >= 7) & (day < 14)).sum(), (good & (day >= 14)).sum()]
    assert list(report.segments) == expected


def test_too_many_bad_rows_stop_with_counts_and_examples(tmp_path: Path) -> None:
    folder = write_log(spoiled(), tmp_path)
    _, report = examined(folder)
    report.refuse_if_bad("LOGS", 0.01)
    with pytest.raises(LogError) as error:
        report.refuse_if_bad("LOGS", 0.001)
    message = str(error.value)
    assert message.startswith(
        "LOGS: 5 of 3000 rows are bad (0.17 %, at most 0.1 % accepted): off_grid_weights 1"
    )
    assert "r0-10 in" in message
    assert "\n" not in message


def test_a_log_that_was_copied_into_itself_is_half_duplicates(tmp_path: Path) -> None:
    write_log(make_log(SURFACE, 400), tmp_path / "a")
    write_log(make_log(SURFACE, 400), tmp_path / "b")
    _, report = examined(tmp_path)
    assert report.by_reason() == {"duplicate_id": 400}
    assert {unit.path.split("/")[-2] for unit in report.bad_units} == {"b"}
    with pytest.raises(LogError, match=r"400 of 800 rows are bad .* first: r0-0 in .*/b/part-000"):
        report.refuse_if_bad("LOGS", 0.01)


def test_a_log_without_one_good_row_is_refused_whatever_the_share(tmp_path: Path) -> None:
    table = make_log(SURFACE, 20)
    index = table.column_names.index("propensity")
    table = table.set_column(index, "propensity", pa.array([0.0] * 20))
    _, report = examined(write_log(table, tmp_path))
    with pytest.raises(LogError, match="20 of 20 rows are bad"):
        report.refuse_if_bad("LOGS", 1.0)


def test_the_quarantine_holds_the_bad_rows_and_their_reasons(tmp_path: Path) -> None:
    files, report = examined(write_log(spoiled(), tmp_path / "logs", files=3, row_group_rows=300))
    folder = write_quarantine(SURFACE, files, report, tmp_path / "q", NOW)
    rows = pa.concat_tables([pq.read_table(path) for path in sorted(folder.glob("*.parquet"))]).to_pylist()
    assert [(row["reason"], row["request_id"]) for row in rows] == [
        ("bad_propensity", "r0-10"),
        ("bad_propensity", "r0-1200"),
        ("off_grid_weights", "r0-1700"),
        ("duplicate_id", "r0-3"),
        ("duplicate_id", "r0-1500"),
    ]
    assert rows[0]["source_file"].endswith("logs/part-000.parquet")
    assert json.loads((folder / "summary.json").read_text())["bad_rows"] == report.by_reason()
    with pytest.raises(LogError, match="exists already"):
        write_quarantine(SURFACE, files, report, tmp_path / "q", NOW)


def test_what_the_log_holds(tmp_path: Path) -> None:
    table = make_log(SURFACE, 2000)
    _, report = examined(write_log(table, tmp_path))
    totals = report.totals
    assert totals.actions.sum() == 2000
    assert totals.rewards[0] == (np.array(table["reward_repin"]) > 0).sum()
    assert totals.unknown[0] == table["context_device"].to_pylist().count("other")
    assert dict(totals.cohorts) == {
        name: table["cohort"].to_pylist().count(name) for name in ("core", "casual", "rest")
    }
    assert sum(totals.days.values()) == 2000
    assert len(totals.days) == 21
    entries = [word for row in table["history_action"].to_pylist() for word in row]
    assert (totals.history, totals.history_unknown) == (len(entries), entries.count("unheard-of"))


# ---------------------------------------------------------------------------------------- duplicates


@given(st.lists(st.text(max_size=12), max_size=30), st.integers(0, 5))
def test_hashes_are_equal_exactly_for_equal_strings(words: list[str], skip: int) -> None:
    array = pa.array(words, pa.string()).slice(min(skip, len(words)))
    hashes = hash_strings(array)
    assert len(np.unique(hashes)) == len(set(array.to_pylist()))
    np.testing.assert_array_equal(hashes, hash_strings(pa.array(array.to_pylist(), pa.large_string())))


def test_a_million_ids_do_not_collide() -> None:
    ids = pa.array(np.arange(1_000_000).astype(str))
    assert len(np.unique(hash_strings(ids))) == 1_000_000


@given(st.lists(st.integers(0, 5), max_size=40))
def test_the_first_of_equal_hashes_stays(values: list[int]) -> None:
    expected = [i for i, value in enumerate(values) if value in values[:i]]
    assert later_occurrences(np.array(values, dtype=np.uint64)).tolist() == expected


# -------------------------------------------------------------------------------------- sample ratio


def totals_of(actions: np.ndarray[Any, Any], propensity: np.ndarray[Any, Any]) -> Totals:
    totals = Totals.zero(SURFACE)
    size = SURFACE.num_actions
    totals.actions += np.bincount(actions, minlength=size)
    totals.inverse += np.bincount(actions, 1 / propensity, minlength=size)
    totals.variance += np.bincount(actions, (1 / propensity) * (1 / propensity - 1), minlength=size)
    return totals


def test_a_right_log_is_not_suspicious() -> None:
    # Propensities that depend on the request: half of the rows favour action 0.
    warned = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        favour = np.full(9, 0.05)
        favour[0] = 0.6
        policy = np.where(rng.random((5000, 1)) < 0.5, favour, 1 / 9)
        action = (rng.random((5000, 1)) > policy.cumsum(axis=1)).sum(axis=1).clip(max=8)
        warned += sample_ratio(totals_of(action, policy[np.arange(5000), action])).suspicious
    assert warned <= 1  # 0.1 % each


def test_the_action_that_occurs_too_often_is_named() -> None:
    rng = np.random.default_rng(0)
    action = rng.integers(9, size=9000)
    action[:300] = 4
    ratio = sample_ratio(totals_of(action, np.full(9000, 1 / 9)))
    assert ratio.suspicious
    assert ratio.deviating[0][0] == 4
    assert ratio.p_value < 1e-3
    assert ratio.deviating[0][2] == pytest.approx(1000)
    line = ratio_line(SURFACE, ratio)
    assert line.startswith("warning: sample ratio")
    assert "action 4 (repin 105, p2p 15.5) has" in line


def test_an_action_that_never_occurs_is_named() -> None:
    action = np.random.default_rng(0).integers(8, size=8000)
    ratio = sample_ratio(totals_of(action, np.full(8000, 1 / 9)))
    assert (8, 0) in [(number, rows) for number, rows, _ in ratio.deviating]


def test_a_log_of_one_certain_action_is_not_suspicious() -> None:
    assert not sample_ratio(totals_of(np.full(500, 3), np.ones(500))).suspicious


def test_reasons_have_labels() -> None:
    assert Reason.FUTURE_TIMESTAMP.label == "future_timestamp"
