"""Two pictures of captured share: over the size of the log, and over α at the largest common size.

Scales are clipped where a learner is so far below zero that the others could not be told apart; a point down
there is drawn as a triangle on the lower edge, with its value beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from benchmarks.learning.cells import ALPHAS
from benchmarks.learning.summaries import Groups, mean_and_interval

COLOURS = (
    *("#1b6ca8", "#c8553d", "#5b8c5a", "#8f5aa8", "#b8860b"),
    *("#555555", "#0f8b8d", "#d1495b", "#7a5c3e", "#3d405b"),
)
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 400, 60, 170, 12, 52
LOWEST = -1.0
TICKS = (-1.0, -0.75, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0)
DODGE = 4.0
"""Pixels between the points of two learners at one place, so that their bars can be told apart."""


@dataclass(frozen=True)
class Point:
    """A mean over seeds with half of its interval, at a place on the x axis."""

    at: float
    mean: float
    half: float


def by_rows_picture(groups: Groups) -> str:
    """Captured share over rows (log axis), one line a learner, bars the 95 % interval over seeds."""
    lines: dict[str, list[Point]] = {}
    for (rows, learner), cells in sorted(groups.items()):
        lines.setdefault(learner, []).append(Point(rows, *mean_and_interval([c["mean"] for c in cells])))
    sizes = sorted({rows for rows, _ in groups})
    low, high = np.log(sizes[0] * 0.8), np.log(sizes[-1] * 1.25)

    def place(rows: float) -> float:
        return float((np.log(rows) - low) / (high - low))

    labels = [(float(rows), f"{rows:,}") for rows in sizes]
    return _chart("Mean over α, by rows of the log (log scale)", lines, place, labels)


def by_alpha_picture(groups: Groups) -> str:
    """Captured share at every α, for every size of the log."""
    charts = []
    for size in sorted({rows for rows, _ in groups}):
        lines = {
            learner: [
                Point(alpha, *mean_and_interval([cell["captured"][p] for cell in cells]))
                for p, alpha in enumerate(ALPHAS)
            ]
            for (rows, learner), cells in sorted(groups.items())
            if rows == size
        }
        labels = [(alpha, f"{alpha:g}") for alpha in ALPHAS]
        charts.append(_chart(f"{size:,} rows, by α", lines, _alpha_place, labels))
    return "".join(charts)


def _alpha_place(alpha: float) -> float:
    return (alpha - ALPHAS[0] + 0.05) / (ALPHAS[-1] - ALPHAS[0] + 0.1)


def _chart(
    title: str,
    lines: dict[str, list[Point]],
    place: Callable[[float], float],
    labels: Sequence[tuple[float, str]],
) -> str:
    points = [point for line in lines.values() for point in line]
    bottom = max(LOWEST, min(0.0, *(point.mean for point in points)) - 0.1)

    def x(at: float) -> float:
        return LEFT + place(at) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        share = (min(max(value, bottom), 1.0) - bottom) / (1.0 - bottom)
        return TOP + (HEIGHT - TOP - BOTTOM) * (1.0 - share)

    parts = [*_axes(x, y, bottom, labels)]
    for number, (learner, line) in enumerate(sorted(lines.items(), key=lambda item: -item[1][-1].mean)):
        colour = COLOURS[sorted(lines).index(learner) % len(COLOURS)]
        parts += _line(line, x, y, bottom, colour, DODGE * (number - (len(lines) - 1) / 2))
        top = TOP + 6 + 20 * number
        parts.append(
            f'<rect x="{WIDTH - RIGHT + 14}" y="{top}" width="10" height="10" fill="{colour}"/>'
            f'<text x="{WIDTH - RIGHT + 30}" y="{top + 9}">{escape(learner)}</text>'
        )
    return (
        f'<h3>{escape(title)}</h3><svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" role="img" '
        f'aria-label="{escape(title)}" font-size="12">{"".join(parts)}</svg>'
    )


def _axes(
    x: Callable[[float], float],
    y: Callable[[float], float],
    bottom: float,
    labels: Sequence[tuple[float, str]],
) -> list[str]:
    parts = []
    for tick in TICKS:
        if tick >= bottom:
            grey = "#888" if tick == 0 else "#e2e2e2"
            parts.append(
                f'<path d="M{LEFT} {y(tick):.1f}H{WIDTH - RIGHT}" stroke="{grey}"/>'
                f'<text x="{LEFT - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>'
            )
    last = float("-inf")
    for at, label in labels:
        # A label that would run into the one before it is left out; its points stay.
        if x(at) - last > 6.5 * len(label) + 6:
            parts.append(f'<text x="{x(at):.1f}" y="{HEIGHT - 30}" text-anchor="middle">{label}</text>')
            last = x(at)
    note = "0 = the best static vector of the truth, 1 = the best request-level policy; bars: 95 % over seeds"
    parts.append(f'<text x="{LEFT}" y="{HEIGHT - 8}" fill="#555">{note}</text>')
    return parts


def _line(
    line: list[Point],
    x: Callable[[float], float],
    y: Callable[[float], float],
    bottom: float,
    colour: str,
    shift: float,
) -> list[str]:
    path = " ".join(f"{x(point.at) + shift:.1f},{y(point.mean):.1f}" for point in line)
    parts = [f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6" opacity=".75"/>']
    for point in line:
        at, top = x(point.at) + shift, y(point.mean)
        if point.mean < bottom:
            parts.append(
                f'<path d="M{at - 4:.1f} {top - 7:.1f}h8l-4 7z" fill="{colour}"/>'
                f'<text x="{at + 5:.1f}" y="{top - 1:.1f}" font-size="9" fill="{colour}">'
                f"{point.mean:.1f}</text>"
            )
            continue
        parts.append(f'<circle cx="{at:.1f}" cy="{top:.1f}" r="3.2" fill="{colour}"/>')
        if np.isfinite(point.half):
            low, high = y(point.mean - point.half), y(point.mean + point.half)
            parts.append(f'<path d="M{at:.1f} {low:.1f}V{high:.1f}" stroke="{colour}" opacity=".6"/>')
    return parts
