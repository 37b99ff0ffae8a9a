from __future__ import annotations

import copy
import re
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_train.frontier_charts import percent
from ray_train.frontier_page import render_page
from ray_train.svg import Axis, Label, nice_ticks, number, place_labels, tick_labels
from ray_train.sweep import build_frontier
from ray_train.sweep_settings import SweepSettings
from ray_train.verdict import verdict
from tests.support.frontiers import frontier_data, planted_rows, run_reference, window
from tests.support.surfaces import small_surface_data
from triton_models.frontier import Frontier
from triton_models.surface import Surface


def swept(surface: Surface, points: int, **settings: Any) -> Frontier:
    return build_frontier(
        surface=surface,
        run=run_reference(surface),
        window=window(4000),
        scored=planted_rows(surface, 4000, points),
        settings=SweepSettings(points=25, resamples=50, **settings),
    )


def pictures(page: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(text) for text in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]


def with_bounds(data: dict[str, Any], bounds: list[dict[str, Any]]) -> Frontier:
    changed = copy.deepcopy(data)
    for point, intervals in zip(changed["points"], bounds, strict=True):
        point["intervals"] = intervals
    return Frontier.model_validate(changed)


def test_the_page_is_self_contained_and_its_pictures_are_well_formed(surface: Surface) -> None:
    page = render_page(swept(surface, 25, by_cohort=True))
    assert page.startswith("<!doctype html>")
    assert not re.findall(r"""(?:src|href|url|@import|action)\s*[=(]\s*["']?\s*(?:https?:)?//""", page)
    assert "nan" not in page.lower()
    # scatter, 2 forests, 2 lifts, 1 metric, 2 weights; 2 responses and 3 panels by cohort
    assert len(pictures(page)) == 1 + 2 + 2 + 1 + 2 + 2 + 3
    identities = re.findall(r'id="([^"]+)"', page)
    assert len(identities) == len(set(identities))
    assert "prefers-color-scheme:dark" in page


def test_every_point_is_in_the_table_and_in_the_scatter(surface: Surface) -> None:
    frontier = swept(surface, 25)
    page = render_page(frontier)
    body = page.split("<h2>All points</h2>")[1]
    assert body.count("<tr") - 1 == len(frontier.points)
    tips = [e.text or "" for e in pictures(page)[0].iter() if e.tag == "title"]
    for point in frontier.points:
        assert any(f"α = {point.scalarization[1]:.3g}" in tip for tip in tips)


@pytest.mark.parametrize(("objectives", "points", "scatters"), [(1, 1, 0), (3, 28, 3)])
def test_other_numbers_of_objectives(objectives: int, points: int, scatters: int) -> None:
    names = ["repin", "p2p", "click"][:objectives]
    surface = Surface.from_dict({**small_surface_data(), "objectives": names})
    page = render_page(swept(surface, points, by_cohort=True))
    assert len(re.findall(r'id="scatter\d"', page)) == scatters
    assert len(pictures(page)) == scatters + objectives  # and a forest each


def test_points_without_an_estimate_do_not_break_the_page(surface: Surface) -> None:
    scored = planted_rows(surface, 500, 25)
    frontier = build_frontier(
        surface=surface,
        run=run_reference(surface),
        window=window(100),
        scored=scored.take(scored.rows.action_N == 4),
        settings=SweepSettings(resamples=10, by_cohort=True),
    )
    page = render_page(frontier)
    assert "The logs value no operating point on every objective." in page
    assert "nan" not in page.lower()
    assert pictures(page)


def test_text_from_outside_is_escaped(surface: Surface) -> None:
    data = frontier_data(surface)
    data["run"]["run_id"] = data["window"]["logs"] = "<script>alert(1)</script>"
    data["production"]["note"] = '"><img src=x onerror=alert(1)>'
    page = render_page(Frontier.model_validate(data))
    assert "<script>alert" not in page
    assert "<img" not in page


@pytest.mark.parametrize(
    ("first", "second", "level"),
    [
        ([0.001, 0.04], [0.0, 0.02], "better"),
        ([0.001, 0.04], [-0.02, 0.02], "trade-off"),
        ([-0.001, 0.04], [-0.02, 0.02], "nothing"),
        ([0.0, 0.04], [0.0, 0.02], "nothing"),  # reaching zero is not being above it
        ([0.001, 0.04], None, "trade-off"),  # unknown is not safe
        (None, None, "nothing"),
    ],
)
def test_the_verdict_is_honest(surface: Surface, first: Any, second: Any, level: str) -> None:
    flat = dict.fromkeys(surface.objectives)
    frontier = with_bounds(frontier_data(surface), [{"repin": first, "p2p": second}, flat])
    judged = verdict(frontier)
    assert judged.level == level
    assert ("No operating point is distinguishable" in judged.text) == (level == "nothing")
    assert ("among 4 looks" in judged.text) == (level != "nothing")
    assert judged.text.split(".")[0] in render_page(frontier)


@settings(deadline=None)
@given(
    st.floats(-1e6, 1e6).filter(lambda x: abs(x) > 1e-6 or x == 0),
    st.floats(1e-6, 1e6),
    st.integers(3, 10),
)
def test_ticks_are_inside_round_and_distinct(low: float, span: float, count: int) -> None:
    high = low + span
    if high - low < 1e-9 * max(abs(low), abs(high)):
        return
    ticks = nice_ticks(low, high, count)
    assert 1 <= len(ticks) <= 2 * count
    slack = 1e-6 * span
    assert all(low - slack <= tick <= high + slack for tick in ticks)
    if span > 1e-4 * abs(low) and span > 1e-4:
        assert len(set(tick_labels(ticks))) == len(ticks)


def test_numbers_for_people() -> None:
    assert number(-0.001, 2) == "0.00"
    assert number(-1.5, 1) == "−1.5"
    assert number(1.5, 1, signed=True) == "+1.5"
    assert tick_labels([-0.5, 0.0, 0.5], signed=True) == ["−0.5", "0.0", "+0.5"]
    assert tick_labels([0, 50, 100]) == ["0", "50", "100"]
    assert percent(0.0123, (-0.001, 0.02)) == "+1.23 % [−0.10, +2.00]"
    assert percent(None) == "–"


def test_an_axis_gives_the_points_at_least_a_third() -> None:
    axis = Axis.around([0.0, 1.0], [-100.0, 100.0], title="x")
    assert axis.high - axis.low <= 3.5
    assert Axis.around([2.0], title="x").low < 2.0 < Axis.around([2.0], title="x").high
    assert Axis.around([float("nan")], title="x").low < 0


def test_labels_do_not_overlap() -> None:
    labels = [Label(200 + 2 * i, 150 + 3 * i, f"label number {i}") for i in range(6)]
    group = ElementTree.fromstring(f"<g>{place_labels(labels, [], (0, 0, 600, 400))}</g>")
    boxes = []
    for item in group.iter("text"):
        x, y, half = float(item.get("x", 0)), float(item.get("y", 0)), 3.8 * len(item.text or "")
        assert x - half >= 0
        assert x + half <= 600
        boxes.append((x - half, y - 10, x + half, y + 3))
    assert len(boxes) == 6
    for i, one in enumerate(boxes):
        for two in boxes[i + 1 :]:
            apart = one[2] <= two[0] or two[2] <= one[0] or one[3] <= two[1] or two[3] <= one[1]
            assert apart
