from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_train.logs import check_schema, discover_files, log_schema, parse_instant, split_by_time
from ray_train.reading import list_units, time_range
from tests.support.logs import START, make_log, replace_cell, write_log
from tests.support.surfaces import small_surface, small_surface_data
from triton_models.errors import LogError
from triton_models.surface import Surface

SURFACE = small_surface()
DAY = timedelta(days=1)


@pytest.mark.parametrize("number", [2**62, -(2**62)])
def test_the_time_range_passes_over_instants_that_datetime_does_not_know(tmp_path: Path, number: int) -> None:
    table = make_log(SURFACE, 90)
    numbers = np.array(table["timestamp"].cast(pa.int64()))
    first, last = numbers[0], numbers[-1]
    numbers[40] = number
    kind = table.schema.field("timestamp").type
    index = table.column_names.index("timestamp")
    spoiled = table.set_column(index, "timestamp", pa.array(numbers).cast(kind))
    files = discover_files(write_log(spoiled, tmp_path / "logs"))
    units = list_units(SURFACE, files)
    assert [unit.first is None for unit in units] == [False, True, False]
    found = time_range(files, units, START + 30 * DAY)
    assert [round(instant.timestamp() * 1e6) for instant in found] == [first, last]


def test_the_columns_follow_from_the_surface() -> None:
    assert log_schema(SURFACE).names == [
        "request_id",
        "timestamp",
        "user_id",
        "cohort",
        "user_embedding",
        "history_embedding",
        "history_action",
        "history_age_s",
        "context_device",
        "context_daypart",
        "weight_repin",
        "weight_p2p",
        "propensity",
        "reward_repin",
        "reward_p2p",
        "metric_successful_session",
    ]
    schema = log_schema(SURFACE)
    assert schema.field("user_embedding").type == pa.list_(pa.float32(), 4)
    assert schema.field("timestamp").type == pa.timestamp("us", tz="UTC")


def test_our_own_schema_and_looser_ones_fit() -> None:
    check_schema(SURFACE, log_schema(SURFACE), source="x")
    loose = {
        "request_id": pa.large_string(),
        "timestamp": pa.timestamp("ns", tz="Europe/Berlin"),
        "user_id": pa.int64(),
        "user_embedding": pa.list_(pa.float64()),
        "history_embedding": pa.large_list(pa.list_(pa.float16())),
        "history_action": pa.list_(pa.dictionary(pa.int8(), pa.string())),
        "weight_p2p": pa.float32(),
        "reward_p2p": pa.bool_(),
        "reward_repin": pa.uint8(),
    }
    fields = [pa.field(f.name, loose.get(f.name, f.type)) for f in log_schema(SURFACE)]
    fields = [f for f in fields if f.name not in ("cohort", "metric_successful_session")]
    check_schema(SURFACE, pa.schema([*fields, pa.field("something_else", pa.binary())]), source="x")


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("propensity", None, "missing propensity"),
        ("context_device", None, "missing context_device"),
        ("timestamp", pa.string(), "timestamp is string, expected timestamp"),
        ("user_embedding", pa.float32(), "user_embedding is float"),
        ("user_embedding", pa.list_(pa.float32(), 5), r"user_embedding is fixed_size_list<.*>\[5\]"),
        ("history_embedding", pa.list_(pa.float32()), "history_embedding is list<"),
        ("reward_repin", pa.string(), "reward_repin is string"),
        ("weight_repin", pa.string(), "weight_repin is string"),
    ],
)
def test_a_schema_that_does_not_fit_names_file_and_column(
    name: str, kind: pa.DataType | None, message: str
) -> None:
    fields = [f if f.name != name else kind and pa.field(name, kind) for f in log_schema(SURFACE)]
    with pytest.raises(LogError, match=message) as error:
        check_schema(SURFACE, pa.schema([f for f in fields if f]), source="part-7.parquet")
    assert str(error.value).startswith("part-7.parquet: does not fit surface small")


def test_weights_and_rewards_that_the_surface_does_not_know_are_refused() -> None:
    extra = [pa.field("weight_click", pa.float64()), pa.field("reward_share", pa.int32())]
    with pytest.raises(LogError, match="the surface does not know weight_click, reward_share"):
        check_schema(SURFACE, pa.schema([*log_schema(SURFACE), *extra]), source="x")


def test_files_are_found_in_nested_folders_but_not_hidden_ones(tmp_path: Path) -> None:
    table = make_log(SURFACE, 10)
    for folder in (".", "day=1", "day=2/hour=3", "_temporary", ".staging/deep"):
        write_log(table, tmp_path / folder, files=1)
    (tmp_path / "_SUCCESS").touch()
    (tmp_path / "notes.txt").write_text("hello")
    found = [Path(path).relative_to(tmp_path).as_posix() for path in discover_files(tmp_path).paths]
    assert found == ["day=1/part-000.parquet", "day=2/hour=3/part-000.parquet", "part-000.parquet"]
    assert discover_files(f"file://{tmp_path}").paths == discover_files(tmp_path).paths
    assert len(discover_files(tmp_path / "part-000.parquet").paths) == 1


def test_a_folder_below_a_hidden_one_is_fine(tmp_path: Path) -> None:
    write_log(make_log(SURFACE, 10), tmp_path / ".cache" / "_logs", files=1)
    assert len(discover_files(tmp_path / ".cache" / "_logs").paths) == 1


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(LogError, match="no such file or folder"):
        discover_files(tmp_path / "absent")
    with pytest.raises(LogError, match=r"holds no \*\.parquet file"):
        discover_files(tmp_path)
    with pytest.raises(LogError, match="cannot be listed"):
        discover_files("nosuchscheme://bucket/logs")


@pytest.mark.parametrize("damage", ["cut", "text", "empty"])
def test_a_damaged_file_is_named(tmp_path: Path, damage: str) -> None:
    write_log(make_log(SURFACE, 200), tmp_path, files=3)
    victim = tmp_path / "part-001.parquet"
    content = victim.read_bytes()
    victim.write_bytes({"cut": content[: len(content) // 2], "text": b"hello" * 99, "empty": b""}[damage])
    with pytest.raises(LogError, match=r"part-001\.parquet: cannot be read as Parquet"):
        list_units(SURFACE, discover_files(tmp_path))


def test_a_log_without_rows_is_refused(tmp_path: Path) -> None:
    write_log(make_log(SURFACE, 10).slice(0, 0), tmp_path, files=1)
    with pytest.raises(LogError, match="hold no rows"):
        list_units(SURFACE, discover_files(tmp_path))


def test_a_surface_of_another_log_is_refused(tmp_path: Path) -> None:
    write_log(make_log(SURFACE, 10), tmp_path, files=1)
    data = small_surface_data()
    data["objectives"] = ["save", "share"]
    with pytest.raises(
        LogError, match=r"missing reward_save, reward_share; .* know reward_repin, reward_p2p"
    ):
        list_units(Surface.from_dict(data), discover_files(tmp_path))


# ------------------------------------------------------------------------------------------- windows


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "America/New_York"])
def test_the_time_range_needs_no_rows_where_statistics_do(
    tmp_path: Path, unit: str, zone: str | None
) -> None:
    table = make_log(SURFACE, 500)
    stamps = table["timestamp"].cast(pa.timestamp(unit, tz=zone or "UTC"), safe=False)
    if zone is None:
        stamps = stamps.cast(pa.timestamp(unit))
    table = table.set_column(table.column_names.index("timestamp"), "timestamp", stamps)
    files = discover_files(write_log(table, tmp_path, files=2, row_group_rows=100))
    first, last = time_range(files, list_units(SURFACE, files), START + 60 * DAY)
    true = make_log(SURFACE, 500)["timestamp"].to_pylist()
    assert abs(first - true[0]) <= timedelta(seconds=1)
    assert abs(last - true[-1]) <= timedelta(seconds=1)
    assert first.utcoffset() == timedelta(0)


def test_timestamps_in_the_future_do_not_stretch_the_range(tmp_path: Path) -> None:
    table = replace_cell(make_log(SURFACE, 300), "timestamp", 299, START + 4000 * DAY)
    files = discover_files(write_log(table, tmp_path))
    _, last = time_range(files, list_units(SURFACE, files), START + 60 * DAY)
    assert last == table["timestamp"].to_pylist()[298]
    with pytest.raises(LogError, match="no row has a timestamp before"):
        time_range(files, list_units(SURFACE, files), START - DAY)


def test_days_are_counted_from_the_end() -> None:
    split = split_by_time(START, START + 40 * DAY, train_days=14, holdout_days=7)
    end = START + 40 * DAY + timedelta(microseconds=1)
    assert (split.train_start, split.holdout_start, split.holdout_end) == (end - 21 * DAY, end - 7 * DAY, end)
    assert not split.by_share


def test_a_log_of_just_the_days_asked_for_is_split_by_days() -> None:
    split = split_by_time(START, START + 20.9 * DAY)
    assert split.holdout_end - split.holdout_start == 7 * DAY
    assert split.train_start == START


def test_a_short_log_is_split_by_the_same_shares() -> None:
    split = split_by_time(START, START + 3 * DAY - timedelta(microseconds=1))
    assert split.by_share
    assert split.train_start == START
    assert split.holdout_start == START + 2 * DAY
    assert split.train_window == (START.isoformat(), (START + 2 * DAY).isoformat())


@given(hours=st.floats(0.01, 2000), train=st.floats(0.1, 60), holdout=st.floats(0.1, 60))
def test_every_split_has_two_windows_that_meet(hours: float, train: float, holdout: float) -> None:
    last = START + timedelta(hours=hours)
    split = split_by_time(START, last, train_days=train, holdout_days=holdout)
    assert START <= split.train_start < split.holdout_start < split.holdout_end
    assert split.holdout_end > last


def test_one_instant_cannot_be_split() -> None:
    with pytest.raises(LogError, match="more than one instant"):
        split_by_time(START, START)


def test_instants() -> None:
    assert parse_instant("2026-05-01") == datetime(2026, 5, 1, tzinfo=UTC)
    assert parse_instant("2026-05-01T02:00:00+02:00") == datetime(2026, 5, 1, tzinfo=UTC)
    with pytest.raises(LogError, match="not an ISO 8601 instant"):
        parse_instant("yesterday")
