"""Where the legend of a plot lies."""

from __future__ import annotations

import re

from ray_train.svg import CHARACTER_PX, LEGEND_PX, Axis, Plot


def plot(*names: str) -> Plot:
    legend = [(name, f"c{number}") for number, name in enumerate(names)]
    return Plot(
        430, 340, Axis(-1, 1, "x", True), Axis(-1, 1, "y", True), "a plot", title="A title", legend=legend
    )


def test_no_line_of_the_plot_crosses_its_legend() -> None:
    shown = plot("offline estimate", "truth")
    picture = shown.render("id")
    left, top, right, _ = shown.frame
    written = re.findall(r'<text class="label quiet" x="([\d.]+)" y="([\d.]+)"[^>]*>([^<]*)', picture)
    assert [name for *_, name in written] == ["offline estimate", "truth"]
    for x, y, name in written:
        assert left < float(x) and float(x) + CHARACTER_PX * len(name) < right
        assert shown.margin[0] - 8 < float(y) - 4 and float(y) + 4 < top
    lines = re.findall(r'<line class="(?:zero|grid)" x1="[-\d.]+" y1="([-\d.]+)"', picture)
    assert lines and all(float(y) >= top for y in lines)


def test_names_that_do_not_fit_begin_a_row_and_the_frame_makes_room() -> None:
    assert plot().frame[1] == 14
    assert plot("one", "two").frame[1] == 14 + LEGEND_PX
    assert plot(*["a name of twenty-four ch"] * 3).frame[1] == 14 + 3 * LEGEND_PX
    assert (
        plot("a name that is longer than the whole of the picture is wide, so that").frame[1]
        == 14 + LEGEND_PX
    )
