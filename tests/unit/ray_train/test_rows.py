from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_train.ingest import encode_table
from ray_train.rows import Reason, bad_rows
from tests.support.logs import START, make_log, replace_cell
from tests.support.surfaces import small_surface

SURFACE = small_surface()
NOW = START + timedelta(days=30)
ROWS = 12
ROW = 4
NAN, INF = float("nan"), float("inf")
ITEM = [0.0, 0.0, 0.0]


def plain_log() -> pa.Table:
    """A good log with plain lists, in which any cell can be broken."""
    table = make_log(SURFACE, ROWS)
    for name, kind in (
        ("user_embedding", pa.list_(pa.float64())),
        ("history_embedding", pa.list_(pa.list_(pa.float64()))),
        ("history_age_s", pa.list_(pa.float64())),
    ):
        table = table.set_column(table.column_names.index(name), name, table[name].cast(kind))
    for name in ("reward_repin", "reward_p2p"):
        table = table.set_column(table.column_names.index(name), name, table[name].cast(pa.float64()))
    return table


def break_history(table: pa.Table, embedding: Any, action: Any, age: Any) -> pa.Table:
    table = replace_cell(table, "history_embedding", ROW, embedding)
    table = replace_cell(table, "history_action", ROW, action)
    return replace_cell(table, "history_age_s", ROW, age)


CASES: list[tuple[str, Any, Reason]] = [
    ("request_id", None, Reason.MISSING_FIELD),
    ("timestamp", None, Reason.MISSING_FIELD),
    ("user_id", None, Reason.MISSING_FIELD),
    ("user_embedding", None, Reason.MISSING_FIELD),
    ("history_embedding", None, Reason.MISSING_FIELD),
    ("history_action", None, Reason.MISSING_FIELD),
    ("history_age_s", None, Reason.MISSING_FIELD),
    ("weight_repin", None, Reason.MISSING_FIELD),
    ("reward_p2p", None, Reason.MISSING_FIELD),
    ("user_embedding", [1.0, NAN, 0.0, 0.0], Reason.NOT_FINITE),
    ("user_embedding", [1.0, None, 0.0, 0.0], Reason.NOT_FINITE),
    ("user_embedding", [1.0, 1e39, 0.0, 0.0], Reason.NOT_FINITE),
    ("weight_p2p", INF, Reason.NOT_FINITE),
    ("metric_successful_session", -INF, Reason.NOT_FINITE),
    ("user_embedding", [1.0], Reason.WRONG_SIZE),
    ("weight_repin", 12.0, Reason.OFF_GRID_WEIGHTS),
    ("weight_repin", 1e300, Reason.OFF_GRID_WEIGHTS),
    ("propensity", None, Reason.BAD_PROPENSITY),
    ("propensity", NAN, Reason.BAD_PROPENSITY),
    ("propensity", 0.0, Reason.BAD_PROPENSITY),
    ("propensity", -0.1, Reason.BAD_PROPENSITY),
    ("propensity", 1.01, Reason.BAD_PROPENSITY),
    ("reward_repin", -1.0, Reason.BAD_COUNT),
    ("reward_repin", 0.5, Reason.BAD_COUNT),
    ("reward_repin", INF, Reason.BAD_COUNT),
    ("timestamp", NOW + timedelta(seconds=1), Reason.FUTURE_TIMESTAMP),
]


@pytest.mark.parametrize(("column", "value", "reason"), CASES)
def test_each_kind_of_bad_row_is_found_and_no_other_row(column: str, value: Any, reason: Reason) -> None:
    reasons = bad_rows(SURFACE, replace_cell(plain_log(), column, ROW, value), NOW)
    expected = np.zeros(ROWS, dtype=int)
    expected[ROW] = reason
    assert reasons.tolist() == expected.tolist()


@pytest.mark.parametrize("unit", ["s", "ms", "us"])
@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (2**62, Reason.FUTURE_TIMESTAMP),
        (-(2**62), Reason.IMPOSSIBLE_TIMESTAMP),
        (-(2**63), Reason.IMPOSSIBLE_TIMESTAMP),
    ],
)
def test_instants_that_datetime_does_not_know(unit: str, number: int, reason: Reason) -> None:
    table = plain_log()
    whole = table["timestamp"].cast(pa.timestamp(unit, tz="UTC"), safe=False)
    numbers = np.array(whole.cast(pa.int64()))
    numbers[ROW] = number
    index = table.column_names.index("timestamp")
    table = table.set_column(index, "timestamp", pa.array(numbers).cast(pa.timestamp(unit, tz="UTC")))
    reasons = bad_rows(SURFACE, table, NOW)
    assert reasons[ROW] == reason
    assert not np.delete(reasons, ROW).any()


@pytest.mark.parametrize(
    ("history", "reason"),
    [
        (([ITEM, ITEM], ["save"], [1.0, 2.0]), Reason.RAGGED_HISTORY),
        (([ITEM], ["save"], [1.0, 2.0]), Reason.RAGGED_HISTORY),
        (([ITEM, [0.0]], ["save", "save"], [1.0, 2.0]), Reason.WRONG_SIZE),
        (([ITEM, None], ["save", "save"], [1.0, 2.0]), Reason.NOT_FINITE),
        (([ITEM, [0.0, NAN, 0.0]], ["save", "save"], [1.0, 2.0]), Reason.NOT_FINITE),
        (([ITEM], ["save"], [INF]), Reason.NOT_FINITE),
        (([ITEM], ["save"], [None]), Reason.NOT_FINITE),
        (([ITEM], [None], [1.0]), Reason.GOOD),
        (([], [], []), Reason.GOOD),
    ],
)
def test_histories(history: tuple[Any, Any, Any], reason: Reason) -> None:
    reasons = bad_rows(SURFACE, break_history(plain_log(), *history), NOW)
    assert reasons[ROW] == reason
    assert not np.delete(reasons, ROW).any()


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("propensity", 1.0),
        ("reward_repin", 3.0),
        ("cohort", None),
        ("cohort", "strangers"),
        ("context_device", None),
        ("metric_successful_session", None),
        ("metric_successful_session", NAN),
        ("timestamp", NOW),
        ("weight_repin", float(np.float32(105.0))),
    ],
)
def test_what_is_allowed(column: str, value: Any) -> None:
    assert not bad_rows(SURFACE, replace_cell(plain_log(), column, ROW, value), NOW).any()


def test_float32_grid_values_are_on_the_grid() -> None:
    table = plain_log()
    index = table.column_names.index("weight_p2p")
    table = table.set_column(index, "weight_p2p", table["weight_p2p"].cast(pa.float32(), safe=False))
    assert not bad_rows(SURFACE, table, NOW).any()


def test_a_row_counts_under_its_first_reason() -> None:
    table = replace_cell(replace_cell(plain_log(), "propensity", ROW, 2.0), "user_id", ROW, None)
    assert bad_rows(SURFACE, table, NOW)[ROW] == Reason.MISSING_FIELD


@settings(max_examples=40, deadline=None)
@given(
    broken=st.lists(st.tuples(st.integers(0, ROWS - 1), st.sampled_from(CASES)), max_size=4),
    start=st.integers(0, 5),
)
def test_rows_that_pass_can_be_encoded_and_are_finite(broken: list[Any], start: int) -> None:
    table = plain_log()
    for row, (column, value, _) in broken:
        table = replace_cell(table, column, row, value)
    table = table.slice(start)
    good = table.filter(pa.array(bad_rows(SURFACE, table, datetime(2027, 1, 1, tzinfo=UTC)) == 0))
    arrays = encode_table(SURFACE, good)
    assert (arrays["action"] >= 0).all()
    for name in ("user_embedding", "history_embedding", "history_age_s", "rewards", "propensity"):
        assert np.isfinite(arrays[name]).all()
