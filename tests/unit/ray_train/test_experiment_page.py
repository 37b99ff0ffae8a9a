from __future__ import annotations

import re
from dataclasses import replace
from xml.etree import ElementTree

from ray_train.experiment import Settings
from ray_train.experiment_page import render_experiment
from ray_train.svg import CHARACTER_PX
from tests.unit.ray_train.test_experiment import KNEE, STATIC, experiment, frontier_with


def pictures(page: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(text) for text in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]


def test_the_page_is_self_contained_and_its_pictures_are_well_formed() -> None:
    settings = Settings(
        shares={None: {"static": 0.5, "knee": 0.5}}, guardrails={"successful_session": {"minimum_lift": -0.1}}
    )
    page = render_experiment(
        experiment([STATIC, KNEE], settings, frontier_with({0.25: 0.1}), users=600, versions=2)
    )
    assert page.startswith("<!doctype html>")
    assert not re.findall(r"""(?:src|href|url|@import|action)\s*[=(]\s*["']?\s*(?:https?:)?//""", page)
    assert "nan" not in page.lower()
    assert len(pictures(page)) == 3 + 3  # a forest and a scatter for each outcome
    identities = re.findall(r'id="([^"]+)"', page)
    assert len(identities) == len(set(identities))
    for title in ("Sample ratio", "Guardrails", "Predicted and measured", "By policy version"):
        assert f"<h2>{title}</h2>" in page


def test_titles_fit_their_pictures_and_no_table_is_wider_than_the_page() -> None:
    page = render_experiment(experiment([STATIC, KNEE], Settings(), frontier_with({0.25: 0.1}), users=600))
    for picture in pictures(page):
        width = float(picture.attrib["viewBox"].split()[2])
        for title in picture.iter("text"):
            if title.get("class") in ("title", "label quiet") and title.get("text-anchor") != "end":
                assert float(title.attrib["x"]) + CHARACTER_PX * len(title.text or "") < width
    section = page.partition("<h2>Predicted and measured</h2>")[2].partition("<h2>")[0]
    head = re.findall(r"<th [^>]*>(.*?)</th>", section)
    assert head == ["operating point", "outcome", "predicted", "measured"]  # however many outcomes there are
    assert re.search(r"r = -?\d\.\d{3}|no correlation", section)


def test_without_frontier_limits_or_events_there_is_still_a_page() -> None:
    quiet = replace(KNEE, lifts=(-1, -1, -1))
    page = render_experiment(experiment([replace(STATIC, lifts=(-1, -1, -1)), quiet], users=20))
    assert "nan" not in page.lower()
    assert "cannot tell" in page
    assert "shares were not declared" in page


def test_text_from_outside_is_escaped() -> None:
    name = "<script>alert(1)</script>"
    page = render_experiment(experiment([STATIC, replace(KNEE, name=name)], users=50))
    assert "<script>alert" not in page
