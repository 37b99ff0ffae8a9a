from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tests.support.frontiers import frontier_data
from triton_models.errors import FrontierError
from triton_models.frontier import Frontier, load_frontier, write_frontier
from triton_models.surface import Surface


@pytest.fixture
def data(surface: Surface) -> dict[str, Any]:
    return frontier_data(surface)


def write(path: Path, data: object) -> Path:
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def test_what_is_written_reads_back_the_same(tmp_path: Path, data: dict[str, Any]) -> None:
    frontier = Frontier.model_validate(data)
    write_frontier(tmp_path / "frontier.json", frontier)
    again = load_frontier(tmp_path)  # a run's folder will do
    assert again == frontier
    assert again.fingerprint == frontier.fingerprint
    assert again.to_dict() == frontier.to_dict()


def test_fingerprint_changes_with_any_number(data: dict[str, Any]) -> None:
    changed = copy.deepcopy(data)
    changed["points"][1]["lifts"]["repin"] = -0.0101
    assert Frontier.model_validate(changed).fingerprint != Frontier.model_validate(data).fingerprint


def test_candidates_are_found_by_label_and_work_as_an_index(data: dict[str, Any]) -> None:
    data["candidates"]["p2p_leaning"] = 1  # a bare index is a candidate without further information
    frontier = Frontier.model_validate(data)
    assert frontier.candidate("p2p_leaning") is frontier.points[frontier.candidates["p2p_leaning"]]
    assert frontier.candidate("knee").scalarization == (0.75, 0.25)
    with pytest.raises(FrontierError, match="no candidate 'best'; it has repin_leaning, knee, p2p_leaning"):
        frontier.candidate("best")


def test_points_of_a_cohort(data: dict[str, Any]) -> None:
    data["points"].append({**data["points"][0], "cohort": "core"})
    frontier = Frontier.model_validate(data)
    assert [point.cohort for point in frontier.points_of("core")] == ["core"]
    assert len(frontier.points_of(None)) == 2
    assert frontier.points_of("rest") == ()


def test_lower_bounds(data: dict[str, Any]) -> None:
    good, bad = Frontier.model_validate(data).points
    assert good.lower_bounds_not_negative()
    assert not bad.lower_bounds_not_negative()
    data["points"][0]["intervals"]["p2p"] = None  # not knowing is not the same as not losing
    assert not Frontier.model_validate(data).points[0].lower_bounds_not_negative()


def test_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(FrontierError, match="there is no frontier; make one with python -m ray_train sweep"):
        load_frontier(tmp_path / "frontier.json")


def test_a_candidate_must_name_a_point(data: dict[str, Any]) -> None:
    data["candidates"]["knee"] = {"point": 2}
    with pytest.raises(ValueError, match="candidate knee names point 2 of 2"):
        Frontier.model_validate(data)


def edit_surface(data: dict[str, Any]) -> None:
    data["surface"]["fixed"]["click"] = 3.0


def drop_lift(data: dict[str, Any]) -> None:
    del data["points"][1]["lifts"]["p2p"]


def negative_scalarization(data: dict[str, Any]) -> None:
    data["points"][0]["scalarization"] = [1.5, -0.5]


def three_objectives(data: dict[str, Any]) -> None:
    data["points"][0]["scalarization"] = [0.2, 0.3, 0.5]


def foreign_cohort(data: dict[str, Any]) -> None:
    data["points"][0]["cohort"] = "martians"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (edit_surface, "the surface does not have the recorded fingerprint"),
        (drop_lift, r"points\[1\]: lifts has keys \['repin'\]"),
        (negative_scalarization, "scalarization.1: Input should be greater than or equal to 0"),
        (three_objectives, r"points\[0\]: scalarization: expected 2 numbers"),
        (foreign_cohort, "cohort 'martians' is not one of the surface's"),
        (lambda data: data.update(points=[]), "points: Tuple should have at least 1 item"),
        (lambda data: data.update(version=3), "version: Input should be 1 or 2"),
        (lambda data: data.update(extra=1), "extra: Extra inputs are not permitted"),
        (lambda data: data["surface"].update(controlled=[]), "surface: controlled"),
        (lambda data: data.pop("window"), "window: Field required"),
    ],
)
def test_damaged_files_get_one_line(tmp_path: Path, data: dict[str, Any], damage: Any, message: str) -> None:
    damage(data)
    with pytest.raises(FrontierError, match=message) as caught:
        load_frontier(write(tmp_path / "frontier.json", data))
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "frontier.json") in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, '{"version": NaN}', "\x00"])
def test_what_is_no_json_object_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "frontier.json").write_text(text)
    with pytest.raises(FrontierError):
        load_frontier(tmp_path)


def test_not_a_number_is_refused_even_as_a_huge_literal(tmp_path: Path, data: dict[str, Any]) -> None:
    for literal in ("NaN", "Infinity", "1e999"):
        text = json.dumps(data).replace("0.0001", literal)
        (tmp_path / "frontier.json").write_text(text)
        with pytest.raises(FrontierError):
            load_frontier(tmp_path)


def test_a_file_of_version_1_keeps_its_fingerprint_and_has_no_bands(surface: Surface) -> None:
    data = frontier_data(surface)
    old = Frontier.model_validate(data)
    assert old.to_dict() == data | {"window": old.to_dict()["window"]}
    assert old.points[0].simultaneous is None
    assert old.points[0].bands() == old.points[0].intervals
    assert old.warnings == ()
    assert Frontier.model_validate(old.to_dict()).fingerprint == old.fingerprint


def test_bands_decide_where_there_are_any(surface: Surface) -> None:
    data = frontier_data(surface)
    data["version"] = 2
    data["points"][0]["simultaneous"] = {name: [-0.001, 0.05] for name in surface.objectives}
    assert not Frontier.model_validate(data).points[0].lower_bounds_not_negative()
    data["points"][0]["simultaneous"] = {"other": None}
    with pytest.raises(ValidationError, match="simultaneous has keys"):
        Frontier.model_validate(data)
