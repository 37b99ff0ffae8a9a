"""The control surface: what it accepts, what it refuses in one line, and what it derives."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.surfaces import small_surface, small_surface_data
from triton_models.errors import ScalarizationError, SurfaceError, SurfaceMismatchError
from triton_models.surface import MAX_ACTIONS, Surface, load_surface

relaxed = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
names = st.from_regex(r"[A-Za-z][A-Za-z0-9_]{0,12}", fullmatch=True)
words = st.text("abcλ -\x85\u2028:#'\"\n", min_size=1, max_size=6) | st.text(min_size=1, max_size=4)


@st.composite
def controlled(draw: Callable[..., Any], head: str) -> dict[str, Any]:
    minimum = draw(st.floats(-1e3, 1e3))
    width = draw(st.floats(1.0, 1e3))
    share = draw(st.floats(0, 1))
    production = min(minimum + share * width, minimum + width)
    return {
        "head": head,
        "minimum": minimum,
        "maximum": minimum + width,
        "points": draw(st.integers(2, 7)),
        "production": production,
    }


@st.composite
def surface_data(draw: Callable[..., Any]) -> dict[str, Any]:
    heads = draw(st.lists(names, min_size=1, max_size=6, unique=True))
    split = draw(st.integers(1, min(len(heads), 4)))
    history = None
    if draw(st.booleans()):
        history = {
            "length": draw(st.integers(1, 50)),
            "embedding": draw(st.integers(1, 32)),
            "actions": draw(st.lists(words, min_size=1, max_size=4, unique=True)),
        }
    vocabulary = st.lists(words, min_size=1, max_size=4, unique=True)
    return {
        "name": draw(names),
        "objectives": draw(st.lists(names, min_size=1, max_size=5, unique=True)),
        "controlled": [draw(controlled(head)) for head in heads[:split]],
        "fixed": {head: draw(st.floats(-100, 100)) for head in heads[split:]},
        "state": {
            "user_embedding": draw(st.integers(1, 64)),
            "history": history,
            "context": draw(st.dictionaries(names, vocabulary, max_size=3)),
        },
        "cohorts": draw(st.lists(words, max_size=3, unique=True)),
        "metrics": draw(st.lists(names, max_size=3, unique=True)),
    }


surfaces = surface_data().map(Surface.from_dict)


# ---------------------------------------------------------------- what is refused


def change(path: str, value: object) -> Callable[[dict[str, Any]], None]:
    def apply(data: dict[str, Any]) -> None:
        *parents, last = path.split(".")
        place: Any = data
        for part in parents:
            place = place[int(part)] if part.isdecimal() else place[part]
        place[int(last) if last.isdecimal() else last] = value

    return apply


def drop(path: str) -> Callable[[dict[str, Any]], None]:
    def apply(data: dict[str, Any]) -> None:
        *parents, last = path.split(".")
        place: Any = data
        for part in parents:
            place = place[int(part)] if part.isdecimal() else place[part]
        del place[last]

    return apply


IMPOSSIBLE = {
    "empty grid": (change("controlled", []), "controlled"),
    "one point": (change("controlled.0.points", 1), "controlled.0.points"),
    "no points": (change("controlled.0.points", 0), "controlled.0.points"),
    "points not whole": (change("controlled.0.points", 7.5), "controlled.0.points"),
    "points as text": (change("controlled.0.points", "7"), "controlled.0.points"),
    "points as bool": (change("controlled.0.points", True), "controlled.0.points"),
    "production above": (change("controlled.0.production", 201), "lies outside [10.0, 200.0]"),
    "production below": (change("controlled.0.production", 9.99), "lies outside"),
    "production nan": (change("controlled.0.production", float("nan")), "controlled.0.production"),
    "minimum inf": (change("controlled.0.minimum", float("-inf")), "controlled.0.minimum"),
    "range empty": (change("controlled.0.maximum", 10), "minimum must be below maximum"),
    "range reversed": (change("controlled.0.maximum", 5), "minimum must be below maximum"),
    "range overflows": (
        change(
            "controlled.0", {"head": "x", "minimum": -1e308, "maximum": 1e308, "points": 2, "production": 0}
        ),
        "told apart in float32",
    ),
    "beyond float32": (change("controlled.0.maximum", 1e39), "told apart in float32"),
    "steps below float32": (
        change(
            "controlled.0", {"head": "x", "minimum": 1e6, "maximum": 1e6 + 1, "points": 7, "production": 1e6}
        ),
        "told apart in float32",
    ),
    "head twice": (change("controlled.1.head", "repin"), "repin appears more than once"),
    "head controlled and fixed": (change("fixed", {"p2p": 1.0}), "p2p appears more than once"),
    "fixed nan": (change("fixed.click", float("nan")), "fixed.click"),
    "objective twice": (change("objectives", ["a", "a"]), "a appears more than once"),
    "no objective": (change("objectives", []), "objectives"),
    "objective as text": (change("objectives", "repin"), "objectives"),
    "objective not a name": (change("objectives", ["re pin"]), "objectives.0"),
    "objective a number": (change("objectives", [1]), "objectives.0"),
    "grid too large": (change("controlled.0.points", 1366), f"limit of {MAX_ACTIONS}"),
    "grid far too large": (change("controlled.0.points", 10**12), f"limit of {MAX_ACTIONS}"),
    "unknown key": (change("colour", "red"), "colour"),
    "unknown key in weight": (change("controlled.0.colour", 1), "controlled.0.colour"),
    "unknown key in state": (change("state.colour", 1), "state.colour"),
    "unknown key in history": (change("state.history.colour", 1), "state.history.colour"),
    "no user embedding": (drop("state.user_embedding"), "state.user_embedding"),
    "user embedding zero": (change("state.user_embedding", 0), "state.user_embedding"),
    "user embedding huge": (change("state.user_embedding", 10**9), "state.user_embedding"),
    "history length zero": (change("state.history.length", 0), "state.history.length"),
    "no history actions": (change("state.history.actions", []), "state.history.actions"),
    "history action twice": (change("state.history.actions", ["a", "a"]), "a appears more than once"),
    "context empty": (change("state.context.device", []), "device has an empty vocabulary"),
    "context word twice": (change("state.context.device", ["a", "a"]), "context field device"),
    "context word a number": (change("state.context.device", [1]), "state.context.device.0"),
    "yaml boolean as word": (change("state.context.device", [True]), "state.context.device.0"),
    "cohort twice": (change("cohorts", ["a", "a"]), "cohorts must be unique"),
    "metric twice": (change("metrics", ["a", "a"]), "metrics must be unique"),
    "no name": (drop("name"), "name"),
    "no state": (drop("state"), "state"),
    "state empty": (change("state", None), "state"),
    "controlled not a list": (change("controlled", {"head": "repin"}), "controlled"),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_impossible_surfaces_give_one_line(case: str, tmp_path: Path) -> None:
    import yaml

    apply, expected = IMPOSSIBLE[case]
    data = copy.deepcopy(small_surface_data())
    apply(data)
    file = tmp_path / "surface.yaml"
    file.write_text(yaml.safe_dump(data))
    with pytest.raises(SurfaceError) as caught:
        load_surface(file)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{file}: ")
    assert expected in message


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "expected a mapping"),
        (b"- a\n- b\n", "expected a mapping"),
        (b"just text", "expected a mapping"),
        (b"name: a\nname: b\n", "key 'name' appears twice"),
        (b"a: {b: 1, b: 2}", "key 'b' appears twice"),
        (b"name: [", "not valid YAML"),
        (b"name: \xff\xfe", "cannot be read"),
        (b"name: !!python/object:os.system {}", "not valid YAML"),
        (b"? [a, b]\n: c\n", "surface.yaml"),
        (b"? {a: b}\n: c\n", "surface.yaml"),
        (b"\x00", "not valid YAML"),
        (b"1: 2\n", "surface.yaml"),
        (b"<<: {name: a}\n<<: {name: b}\n", "surface.yaml"),
        (b"a: &x [*x]\n", "surface.yaml"),
        (b"name: 2026-99-99\n", "surface.yaml"),
        (b"[" * 400, "surface.yaml"),
    ],
    ids=lambda value: repr(value[:20]),
)
def test_files_that_are_no_surface(tmp_path: Path, content: bytes, expected: str) -> None:
    file = tmp_path / "surface.yaml"
    file.write_bytes(content)
    with pytest.raises(SurfaceError) as caught:
        load_surface(file)
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.yaml", tmp_path):
        with pytest.raises(SurfaceError, match="cannot be read"):
            load_surface(path)


# ---------------------------------------------------------------- what is derived


def test_actions_are_row_major_with_the_last_weight_fastest() -> None:
    surface = small_surface()
    expected = list(itertools.product([10.0, 105.0, 200.0], [1.0, 15.5, 30.0]))
    np.testing.assert_allclose(surface.actions, expected)
    np.testing.assert_allclose(surface.normalized_actions[[0, 5, 8]], [[0, 0], [0.5, 1], [1, 1]])
    assert surface.num_actions == 9
    # Distances to production (0.43, 0.28) in normalised weights: (0.5, 0.5) is nearest.
    assert surface.nearest_production_action == 4
    assert surface.heads == ("repin", "p2p", "click", "hide")


def test_production_mixture_by_hand() -> None:
    """repin 91.6 lies (91.6 - 10) / 95 of a step above 10; p2p 9.1 lies 8.1 / 14.5 above 1."""
    a, b = 81.6 / 95, 8.1 / 14.5
    mixture = small_surface().production_mixture()
    np.testing.assert_allclose(mixture[[0, 1, 3, 4]], [(1 - a) * (1 - b), (1 - a) * b, a * (1 - b), a * b])
    assert mixture[[2, 5, 6, 7, 8]].tolist() == [0.0] * 5


@relaxed
@given(surfaces)
def test_grid_properties(surface: Surface) -> None:
    numbers = np.arange(surface.num_actions)
    np.testing.assert_array_equal(surface.action_indices(surface.actions), numbers)
    np.testing.assert_array_equal(surface.action_indices(surface.actions.astype(np.float32)), numbers)
    assert surface.normalized_actions.min() == 0
    assert surface.normalized_actions.max() == pytest.approx(1, abs=1e-9)
    mixture = surface.production_mixture()
    assert mixture.shape == (surface.num_actions,)
    assert (mixture >= 0).all()
    assert mixture.sum() == pytest.approx(1)
    np.testing.assert_allclose(
        mixture @ surface.normalized_actions, surface.normalize(surface.production), atol=1e-9
    )


@relaxed
@given(surfaces, st.floats(0.01, 0.99))
def test_weights_between_grid_points_are_off_grid(surface: Surface, share: float) -> None:
    weights = surface.actions.copy()
    weights[:, -1] += share * surface.controlled[-1].step
    assert (surface.action_indices(weights) == -1).all()


def test_float32_weights_of_a_narrow_grid_are_on_it() -> None:
    data = small_surface_data()
    narrow = {"head": "repin", "minimum": 128.6, "maximum": 128.85, "points": 5, "production": 128.7}
    surface = Surface.from_dict({**data, "controlled": [narrow]})
    assert surface.action_indices(surface.actions.astype(np.float32)).tolist() == [0, 1, 2, 3, 4]
    assert surface.action_indices(surface.actions + 0.01).tolist() == [-1] * 5


def test_off_grid_nan_and_infinity() -> None:
    surface = small_surface()
    weights = [[10, 1], [10, 30.1], [np.nan, 1], [10, np.inf], [-1e308, 1], [295, 1], [-85, 1]]
    assert surface.action_indices(weights).tolist() == [0, -1, -1, -1, -1, -1, -1]
    with pytest.raises(ValueError, match=r"shape \[n, 2\]"):
        surface.action_indices([[1.0, 2.0, 3.0]])


# ---------------------------------------------------------------- identity


@relaxed
@given(surfaces)
def test_what_is_written_reads_back_the_same(surface: Surface) -> None:
    import yaml

    for back in (
        Surface.from_dict(json.loads(json.dumps(surface.to_dict()))),
        Surface.from_dict(yaml.safe_load(surface.to_yaml())),
    ):
        assert back == surface
        assert back.fingerprint == surface.fingerprint
        surface.require_same(back, this="one", that="two")


@relaxed
@given(surfaces, surfaces)
def test_equal_surfaces_and_only_they_have_equal_fingerprints(one: Surface, two: Surface) -> None:
    same = one.canonical() == two.canonical()
    assert (one.fingerprint == two.fingerprint) == same


def test_order_belongs_to_the_identity() -> None:
    """Order numbers codes, heads and actions, so a reordered mapping is another surface."""
    for path in ("fixed", "state.context"):
        data = small_surface_data()
        place = data if path == "fixed" else data["state"]
        key = path.rpartition(".")[2]
        place[key] = dict(reversed(place[key].items()))
        assert Surface.from_dict(data).fingerprint != small_surface().fingerprint


def test_a_mismatch_names_the_fields() -> None:
    data = small_surface_data()
    data["controlled"][1]["points"] = 4
    data["state"]["user_embedding"] = 8
    with pytest.raises(SurfaceMismatchError) as caught:
        small_surface().require_same(Surface.from_dict(data), this="the run", that="the model")
    message = str(caught.value)
    assert "the run and the model" in message and "\n" not in message
    assert "controlled[1].points (3 against 4)" in message
    assert "state.user_embedding (4 against 8)" in message


# ---------------------------------------------------------------- scalarization


@relaxed
@given(st.lists(st.floats(0, 1e6), min_size=2, max_size=2).filter(lambda x: sum(x) > 1e-300))
def test_scalarization_lands_on_the_simplex(values: list[float]) -> None:
    scalarization = small_surface().scalarization(values)
    assert scalarization.sum() == pytest.approx(1)
    assert (scalarization >= 0).all()
    np.testing.assert_allclose(scalarization * sum(values), values, rtol=1e-9, atol=1e-300)


@pytest.mark.parametrize(
    "values",
    [
        [0, 0], [1], [1, 1, 1], [-1, 2], [float("nan"), 1], [float("inf"), 1], "ab", None, [[1, 1]],
        ["x", 1], {}, [1, None], [1 + 2j, 1], [1e400, 1], [10**400, 1],
    ],
)  # fmt: skip
def test_impossible_scalarizations(values: object) -> None:
    with pytest.raises(ScalarizationError) as caught:
        small_surface().scalarization(values, source="arm A")  # type: ignore[arg-type]
    assert str(caught.value).startswith("arm A: ") and "\n" not in str(caught.value)
