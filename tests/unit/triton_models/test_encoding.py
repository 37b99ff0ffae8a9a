"""One request state → tensors: the documented rules, and only two kinds of error."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.surfaces import small_surface, small_surface_data
from triton_models.encoding import encode_state
from triton_models.errors import StateError, StateIncompleteError, StateInvalidError
from triton_models.surface import Surface
from triton_models.tensors import input_specs, output_specs, specs_as_json, state_specs

SURFACE = small_surface()


def state(entries: int = 2) -> dict[str, Any]:
    """``entries`` history entries; entry i has embedding [i, i, i] and age 10·i."""
    actions = ["save", "click"]
    return {
        "user_embedding": [0.1, 0.2, 0.3, 0.4],
        "history": {
            "embedding": [[float(i)] * 3 for i in range(entries)],
            "action": [actions[i % 2] for i in range(entries)],
            "age_s": [10.0 * i for i in range(entries)],
        },
        "context": {"device": "web", "daypart": "night"},
    }


def test_by_hand() -> None:
    tensors = encode_state(SURFACE, state(2))
    np.testing.assert_allclose(tensors["user_embedding"], np.float32([0.1, 0.2, 0.3, 0.4]))
    assert tensors["history_embedding"].tolist() == [[0] * 3, [1] * 3, [0] * 3, [0] * 3, [0] * 3]
    assert tensors["history_action"].tolist() == [1, 2, 0, 0, 0]
    assert tensors["history_age_s"].tolist() == [0, 10, 0, 0, 0]
    assert tensors["context"].tolist() == [2, 1]


def test_integers_are_numbers() -> None:
    given_state = state(2)
    given_state["user_embedding"] = [1, 2, 3, 4]
    given_state["history"]["age_s"] = np.array([7, 8], dtype=np.uint8)
    tensors = encode_state(SURFACE, given_state)
    assert tensors["user_embedding"].tolist() == [1, 2, 3, 4]
    assert tensors["history_age_s"].tolist() == [7, 8, 0, 0, 0]
    assert all(tensors[spec.name].dtype == spec.dtype for spec in state_specs(SURFACE))


def test_of_a_long_history_the_newest_are_used() -> None:
    tensors = encode_state(SURFACE, state(8))
    assert tensors["history_age_s"].tolist() == [30, 40, 50, 60, 70]


def test_unknown_history_actions_are_left_out_before_cutting() -> None:
    given_state = state(8)
    given_state["history"]["action"][7] = "share"
    tensors = encode_state(SURFACE, given_state)
    assert tensors["history_age_s"].tolist() == [20, 30, 40, 50, 60]
    assert (tensors["history_action"] > 0).all()


def test_unknown_context_is_code_zero() -> None:
    given_state = state()
    given_state["context"] = {"device": "fridge", "extra": "ignored"}
    assert encode_state(SURFACE, given_state)["context"].tolist() == [0, 0]
    del given_state["context"]
    assert encode_state(SURFACE, given_state)["context"].tolist() == [0, 0]


def test_negative_ages_mean_just_now() -> None:
    given_state = state(2)
    given_state["history"]["age_s"] = [-5.0, 3.0]
    assert encode_state(SURFACE, given_state)["history_age_s"].tolist() == [0, 3, 0, 0, 0]


@pytest.mark.parametrize(
    "path", ["user_embedding", "history", "history.embedding", "history.action", "history.age_s"]
)
@pytest.mark.parametrize("how", ["absent", "null"])
def test_missing_fields_are_incomplete(path: str, how: str) -> None:
    given_state = state()
    *parents, last = path.split(".")
    place = given_state
    for part in parents:
        place = place[part]
    if how == "absent":
        del place[last]
    else:
        place[last] = None
    with pytest.raises(StateIncompleteError, match=f"{path} is missing"):
        encode_state(SURFACE, given_state)


INVALID: dict[str, tuple[str, Any]] = {
    "short user": ("user_embedding", [1.0]),
    "numbers as text": ("user_embedding", ["1.0", "2", "3", "4"]),
    "one number as text": ("user_embedding", ["1.0", 2, 3, 4]),
    "booleans": ("user_embedding", [True, False, True, True]),
    "embedding as text": ("history.embedding", [["1", "2", "3"], ["1", "2", "3"]]),
    "ages as booleans": ("history.age_s", [True, False]),
    "flat text": ("user_embedding", "abcd"),
    "nested user": ("user_embedding", [[1.0] * 4]),
    "ragged user": ("user_embedding", [1.0, [2.0], 3.0, 4.0]),
    "nan": ("user_embedding", [float("nan"), 1, 1, 1]),
    "too large for float32": ("user_embedding", [1e39, 1, 1, 1]),
    "huge integer": ("user_embedding", [10**400, 1, 1, 1]),
    "user an object": ("user_embedding", {"a": 1}),
    "user of nulls": ("user_embedding", [None, 1, 1, 1]),
    "history a list": ("history", []),
    "ragged history": ("history.age_s", [1.0]),
    "embedding size": ("history.embedding", [[1.0], [2.0]]),
    "embedding ragged": ("history.embedding", [[1.0, 2.0, 3.0], [2.0]]),
    "embedding inf": ("history.embedding", [[1.0, 2.0, float("inf")], [0.0] * 3]),
    "age text": ("history.age_s", ["x", "y"]),
    "age nan": ("history.age_s", [float("nan"), 1.0]),
    "age nested": ("history.age_s", [[1.0], [2.0]]),
    "age number": ("history.age_s", 3.0),
    "action text": ("history.action", "ab"),
    "action lists": ("history.action", [["save"], ["click"]]),
    "context list": ("context", ["web"]),
    "context number": ("context.device", 3),
    "context nested": ("context.device", ["web"]),
}


@pytest.mark.parametrize("case", INVALID)
def test_wrong_fields_are_invalid(case: str) -> None:
    path, value = INVALID[case]
    given_state = state()
    *parents, last = path.split(".")
    place = given_state
    for part in parents:
        place = place[part]
    place[last] = value
    with pytest.raises(StateInvalidError) as caught:
        encode_state(SURFACE, given_state)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("given_state", [None, [], "state", 3])
def test_a_state_is_an_object(given_state: Any) -> None:
    with pytest.raises(StateInvalidError, match="expected an object"):
        encode_state(SURFACE, given_state)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
paths = [
    "user_embedding",
    "history",
    "history.embedding",
    "history.action",
    "history.age_s",
    "context",
    "context.device",
]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(paths), json_values)
def test_any_json_either_encodes_or_is_a_state_error(path: str, value: Any) -> None:
    given_state = state()
    *parents, last = path.split(".")
    place = given_state
    for part in parents:
        place = place[part]
    place[last] = value
    before = copy.deepcopy(given_state)
    try:
        tensors = encode_state(SURFACE, given_state)
    except StateError:
        return
    for spec in state_specs(SURFACE):
        assert tensors[spec.name].shape == spec.shape
        assert tensors[spec.name].dtype == spec.dtype
        assert np.isfinite(tensors[spec.name]).all()
    assert tensors["context"].min() >= 0 and (tensors["context"] <= 2).all()
    assert repr(given_state) == repr(before), "the request must not be changed"


@settings(deadline=None)
@given(st.integers(0, 12))
def test_padding_is_at_the_back(entries: int) -> None:
    tensors = encode_state(SURFACE, state(entries))
    real = tensors["history_action"] > 0
    assert real.tolist() == [True] * min(entries, 5) + [False] * (5 - min(entries, 5))
    assert not tensors["history_embedding"][~real].any() and not tensors["history_age_s"][~real].any()


def test_parts_that_a_surface_lacks_have_no_tensor() -> None:
    data = small_surface_data()
    data["state"] = {"user_embedding": 4}
    surface = Surface.from_dict(data)
    assert list(encode_state(surface, {"user_embedding": [0.0] * 4})) == ["user_embedding"]
    assert [spec.name for spec in input_specs(surface)] == ["user_embedding", "scalarization"]


def test_specifications_follow_the_table_in_the_design() -> None:
    assert [(s.name, s.datatype, s.shape) for s in (*input_specs(SURFACE), *output_specs(SURFACE))] == [
        ("user_embedding", "FP32", (4,)),
        ("history_embedding", "FP32", (5, 3)),
        ("history_action", "INT64", (5,)),
        ("history_age_s", "FP32", (5,)),
        ("context", "INT64", (2,)),
        ("scalarization", "FP32", (2,)),
        ("weights", "FP32", (2,)),
        ("action", "INT64", (1,)),
        ("values", "FP32", (2,)),
        ("action_values", "FP32", (9, 2)),
    ]
    assert list(encode_state(SURFACE, state())) == [spec.name for spec in state_specs(SURFACE)]
    assert specs_as_json(output_specs(SURFACE))[1] == {"name": "action", "datatype": "INT64", "shape": [1]}
    assert state_specs(SURFACE)[2].triton_type == "TYPE_INT64"
