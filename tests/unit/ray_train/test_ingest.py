from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_train.ingest import LARGEST_COUNT, encode_states, encode_table
from ray_train.logs import log_schema
from tests.support.logs import make_log, replace_cell
from tests.support.surfaces import small_surface, small_surface_data
from triton_models.encoding import encode_state
from triton_models.errors import LogError
from triton_models.surface import Surface
from triton_models.tensors import state_specs

SURFACE = small_surface()
NUMBER = st.floats(-1e6, 1e6, width=32)
ENTRY = st.tuples(
    st.lists(NUMBER, min_size=3, max_size=3),
    st.sampled_from(["save", "click", "unheard-of", None]),
    st.floats(-100, 1e6, width=32),
)
ROW = st.fixed_dictionaries(
    {
        "user": st.lists(NUMBER, min_size=4, max_size=4),
        "history": st.lists(ENTRY, max_size=9),
        "device": st.sampled_from(["phone", "web", "fridge", None]),
        "daypart": st.sampled_from(["night", "day", "", None]),
    }
)


def as_table(rows: list[dict[str, Any]], variant: int) -> pa.Table:
    """State columns in one of the layouts that writers choose."""
    number, text = [(pa.float32(), pa.string()), (pa.float64(), pa.large_string())][variant % 2]
    vector = (lambda size: pa.list_(number, size)) if variant < 2 else (lambda size: pa.list_(number))
    outer = pa.large_list if variant == 3 else pa.list_
    columns = {
        "user_embedding": pa.array([row["user"] for row in rows], vector(4)),
        "history_embedding": pa.array([[e[0] for e in row["history"]] for row in rows], outer(vector(3))),
        "history_action": pa.array([[e[1] for e in row["history"]] for row in rows], outer(text)),
        "history_age_s": pa.array([[e[2] for e in row["history"]] for row in rows], outer(number)),
        "context_device": pa.array([row["device"] for row in rows], text),
        "context_daypart": pa.array([row["daypart"] for row in rows], text).dictionary_encode(),
    }
    return pa.table(columns)


def as_state(row: dict[str, Any]) -> dict[str, Any]:
    history = row["history"]
    return {
        "user_embedding": row["user"],
        "history": {
            "embedding": [e[0] for e in history],
            "action": [e[1] for e in history],
            "age_s": [e[2] for e in history],
        },
        "context": {"device": row["device"], "daypart": row["daypart"]},
    }


@settings(max_examples=150, deadline=None)
@given(rows=st.lists(ROW, min_size=1, max_size=7), variant=st.integers(0, 3), skip=st.integers(0, 3))
def test_a_table_is_encoded_as_each_of_its_rows_is(rows: list[Any], variant: int, skip: int) -> None:
    # Slicing (skip) leaves the buffers in place and moves the offsets, which vectorised code gets wrong.
    skip = min(skip, len(rows))
    batch = encode_states(SURFACE, as_table(rows, variant).slice(skip))
    assert list(batch) == [spec.name for spec in state_specs(SURFACE)]
    for i, row in enumerate(rows[skip:]):
        for name, expected in encode_state(SURFACE, as_state(row)).items():
            np.testing.assert_array_equal(batch[name][i], expected)
            assert batch[name].dtype == expected.dtype


def test_the_newest_known_actions_are_used_oldest_first_and_padded_at_the_back() -> None:
    # 7 entries with ages 7..1, two of them of unknown type: 5 known ones stay, in order, for N = 5.
    actions = ["save", "x", None, "click", "save", "save", "click"]
    row = {"user": [0.0] * 4, "device": "web", "daypart": None}
    long = row | {"history": [([float(i)] * 3, a, 7.0 - i) for i, a in enumerate(actions)]}
    short = row | {"history": [([1.0] * 3, "click", -5.0)]}
    batch = encode_states(SURFACE, as_table([long, short], 0))
    assert batch["history_action"].tolist() == [[1, 2, 1, 1, 2], [2, 0, 0, 0, 0]]
    assert batch["history_age_s"].tolist() == [[7, 4, 3, 2, 1], [0, 0, 0, 0, 0]]
    assert batch["history_embedding"][0, :, 0].tolist() == [0, 3, 4, 5, 6]
    assert batch["context"].tolist() == [[2, 0], [2, 0]]


def test_everything_else_of_a_row() -> None:
    table = make_log(SURFACE, 50).select(log_schema(SURFACE).names)
    table = replace_cell(replace_cell(table, "cohort", 3, None), "metric_successful_session", 4, None)
    table = replace_cell(replace_cell(table, "reward_repin", 5, 7), "reward_repin", 6, 2**31 - 1)
    arrays = encode_table(SURFACE, table)
    logged = np.stack([table["weight_repin"].to_numpy(), table["weight_p2p"].to_numpy()], axis=1)
    np.testing.assert_allclose(SURFACE.actions[arrays["action"]], logged)
    assert arrays["rewards"][5:7, 0].tolist() == [1.0, 1.0]
    assert arrays["counts"][5:7, 0].tolist() == [7, LARGEST_COUNT]
    assert arrays["counts"].dtype == np.uint8
    np.testing.assert_array_equal(arrays["rewards"], arrays["counts"] > 0)
    assert set(np.unique(arrays["rewards"])) <= {0.0, 1.0}
    assert arrays["cohort"][3] is None
    assert arrays["cohort"][2] == table["cohort"][2].as_py()
    assert np.isnan(arrays["metrics"][4, 0])
    assert np.isfinite(arrays["metrics"][3, 0])
    assert arrays["user_id"][0] == table["user_id"][0].as_py()
    assert arrays["timestamp"].dtype == "datetime64[us]"
    assert arrays["timestamp"][7] == np.datetime64(table["timestamp"][7].as_py().replace(tzinfo=None), "us")
    assert arrays["propensity"].dtype == np.float64


def test_absent_optional_columns_are_unknown() -> None:
    table = make_log(SURFACE, 5).drop_columns(["cohort", "metric_successful_session"])
    arrays = encode_table(SURFACE, table)
    assert arrays["cohort"].tolist() == [None] * 5
    assert np.isnan(arrays["metrics"]).all()


def test_a_state_without_history_and_context() -> None:
    data = small_surface_data()
    data["state"] = {"user_embedding": 4}
    bare = Surface.from_dict(data)
    arrays = encode_states(bare, make_log(bare, 6))
    assert list(arrays) == ["user_embedding"]
    assert arrays["user_embedding"].shape == (6, 4)


def test_an_empty_table_has_the_right_shapes() -> None:
    arrays = encode_table(SURFACE, make_log(SURFACE, 3).slice(0, 0))
    assert arrays["history_embedding"].shape == (0, 5, 3)
    assert arrays["rewards"].shape == (0, 2)


def test_lists_that_were_always_empty_have_no_type_and_are_fine() -> None:
    rows = as_table([{"user": [0.0] * 4, "history": [], "device": None, "daypart": None}] * 2, 0)
    for name in ("history_embedding", "history_action", "history_age_s"):
        rows = rows.set_column(rows.column_names.index(name), name, pa.array([[], []], pa.list_(pa.null())))
    assert encode_states(SURFACE, rows)["history_embedding"].sum() == 0


def test_vectors_of_another_size_are_refused() -> None:
    table = make_log(SURFACE, 4)
    wrong = pa.array([[1.0, 2.0]] * 4, pa.list_(pa.float32()))
    index = table.column_names.index("user_embedding")
    with pytest.raises(LogError, match="user_embedding: expected 4 numbers"):
        encode_states(SURFACE, table.set_column(index, "user_embedding", wrong))
