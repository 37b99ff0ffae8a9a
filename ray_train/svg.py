"""Small pieces of SVG: axes with round ticks, a plot frame, labels that do not overlap.

Colours are CSS classes, so that one picture serves light and dark pages. Everything that comes from data
goes through :func:`escape`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise

Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels."""

CHARACTER_PX = 7.6
"""Width of an average bold character at the pictures' 12 px, on the generous side."""
LINE_PX = 15.0
LEGEND_PX = 16.0
"""Height of a row of the legend."""


def nice_ticks(low: float, high: float, count: int = 6) -> list[float]:
    """About ``count`` round numbers (1, 2, 2.5 or 5 times a power of ten apart) inside [low, high]."""
    if not high > low:
        return [low]
    raw = (high - low) / max(count - 1, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * min((1.0, 2.0, 2.5, 5.0, 10.0), key=lambda factor: abs(math.log(factor * power / raw)))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [k * step for k in range(first, last + 1)]


def tick_labels(ticks: Sequence[float], *, signed: bool = False) -> list[str]:
    """Ticks with as many decimals as their step needs; a true minus sign, and a plus if ``signed``."""
    step = min((b - a for a, b in pairwise(ticks)), default=abs(ticks[0]) or 1.0)
    decimals = next((d for d in range(7) if abs(round(step, d) - step) <= 1e-6 * step), 6)
    return [number(tick, decimals, signed=signed) for tick in ticks]


def number(value: float, decimals: int, *, signed: bool = False) -> str:
    """A number for people: true minus sign, no negative zero."""
    text = f"{value:.{decimals}f}"
    if float(text) == 0:
        return text.removeprefix("-")
    return text.replace("-", "−") if value < 0 else f"+{text}" if signed else text


@dataclass(frozen=True)
class Axis:
    """A linear axis in data units."""

    low: float
    high: float
    title: str
    signed: bool = False
    """Ticks carry their sign, as changes do."""

    @classmethod
    def around(
        cls, core: Iterable[float], extra: Iterable[float] = (), *, title: str, signed: bool = False
    ) -> Axis:
        """An axis that shows all of ``core``, and of ``extra`` what leaves core a third of the space."""
        values = [value for value in core if math.isfinite(value)] or [0.0]
        low, high = min(values), max(values)
        span = high - low or max(abs(high), 1.0) * 0.2
        more = [value for value in extra if math.isfinite(value)]
        low_all, high_all = min([low, *more]), max([high, *more])
        low, high = max(low_all, low - span), min(high_all, high + span)
        pad = 0.07 * (high - low or span)
        return cls(low - pad, high + pad, title, signed)


@dataclass
class Plot:
    """A frame with axes; data go in through ``x`` and ``y``, marks through ``add``."""

    width: float
    height: float
    x_axis: Axis
    y_axis: Axis
    label: str
    """What the picture shows, for people who cannot see it."""
    margin: tuple[float, float, float, float] = (14, 16, 46, 58)
    """Top, right, bottom, left."""
    title: str = ""
    subtitle: str = ""
    """A line of its own below the title: names of outcomes are as long as they like."""
    y_ticks: bool = True
    legend: Sequence[tuple[str, str]] = ()
    """(name, colour class) of what is drawn: rows between title and frame, where no line can cross them."""
    _marks: list[str] = field(default_factory=list)
    _free: list[str] = field(default_factory=list)

    @property
    def frame(self) -> Box:
        """The plot area."""
        top, right, bottom, left = self.margin
        rows = max((row + 1 for row, _ in self._legend_places()), default=0)
        top += LEGEND_PX * (rows + bool(self.subtitle))
        return left, top, self.width - right, self.height - bottom

    def x(self, value: float) -> float:
        """Data → pixel."""
        left, _, right, _ = self.frame
        return left + (value - self.x_axis.low) / (self.x_axis.high - self.x_axis.low) * (right - left)

    def y(self, value: float) -> float:
        """Data → pixel."""
        _, top, _, bottom = self.frame
        return bottom - (value - self.y_axis.low) / (self.y_axis.high - self.y_axis.low) * (bottom - top)

    def add(self, mark: str) -> None:
        """A mark that is cut off at the frame."""
        self._marks.append(mark)

    def write(self, mark: str) -> None:
        """A mark on top of everything that is not cut off (text)."""
        self._free.append(mark)

    def render(self, identity: str) -> str:
        """The whole picture; ``identity`` must be unique on the page."""
        left, top, right, bottom = self.frame
        clip = f'<clipPath id="{identity}"><rect {_rectangle(self.frame)}/></clipPath>'
        frame = f'<rect class="frame" {_rectangle(self.frame)}/>'
        title = (
            f'<text class="title" x="{left}" y="{self.margin[0] - 8}">{escape(self.title)}</text>'
            if self.title
            else ""
        )
        if self.subtitle:
            title += text(left, self.margin[0] + 8, self.subtitle, "label quiet")
        return (
            f'<svg viewBox="0 0 {self.width:g} {self.height:g}" role="img" aria-label="{escape(self.label)}">'
            f"{clip}{title}{self._legend()}{self._grid()}{frame}"
            f'<g clip-path="url(#{identity})">{"".join(self._marks)}</g>{"".join(self._free)}'
            f'<text class="axis" x="{(left + right) / 2:.1f}" y="{self.height - 8:.1f}" '
            f'text-anchor="middle">{escape(self.x_axis.title)}</text>'
            f'<text class="axis" transform="translate(14 {(top + bottom) / 2:.1f}) rotate(-90)" '
            f'text-anchor="middle">{escape(self.y_axis.title)}</text></svg>'
        )

    def _legend_places(self) -> list[tuple[int, float]]:
        """Row and left edge of every name of the legend; a name that does not fit begins a row."""
        _, right, _, left = self.margin
        places, row, x = [], 0, left
        for name, _ in self.legend:
            width = CHARACTER_PX * len(name) + 26
            if x > left and x + width > self.width - right:
                row, x = row + 1, left
            places.append((row, x))
            x += width
        return places

    def _legend(self) -> str:
        parts = []
        for (row, x), (name, kind) in zip(self._legend_places(), self.legend, strict=True):
            y = self.margin[0] + LEGEND_PX * (row + bool(self.subtitle)) + 8
            parts.append(circle(x + 4, y - 4, 4, f"dot {kind}") + text(x + 13, y, name, "label quiet"))
        return "".join(parts)

    def _grid(self) -> str:
        left, top, right, bottom = self.frame
        parts = []
        ticks = nice_ticks(self.x_axis.low, self.x_axis.high, max(4, int((right - left) / 62)))
        for tick, text in zip(ticks, tick_labels(ticks, signed=self.x_axis.signed), strict=True):
            kind = "zero" if tick == 0 and self.x_axis.signed else "grid"
            parts.append(line(self.x(tick), top, self.x(tick), bottom, kind))
            parts.append(
                f'<text class="tick" x="{self.x(tick):.1f}" y="{bottom + 16}" '
                f'text-anchor="middle">{text}</text>'
            )
        if not self.y_ticks:
            return "".join(parts)
        ticks = nice_ticks(self.y_axis.low, self.y_axis.high, max(4, int((bottom - top) / 38)))
        for tick, text in zip(ticks, tick_labels(ticks, signed=self.y_axis.signed), strict=True):
            kind = "zero" if tick == 0 and self.y_axis.signed else "grid"
            parts.append(line(left, self.y(tick), right, self.y(tick), kind))
            parts.append(
                f'<text class="tick" x="{left - 7}" y="{self.y(tick) + 4:.1f}" '
                f'text-anchor="end">{text}</text>'
            )
        return "".join(parts)


def _rectangle(box: Box) -> str:
    left, top, right, bottom = box
    return f'x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" height="{bottom - top:.1f}"'


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    """A straight line of a CSS class."""
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def path(points: Sequence[tuple[float, float]], kind: str, *, closed: bool = False) -> str:
    """A polyline, or a filled polygon."""
    if not points:
        return ""
    body = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<{"polygon" if closed else "polyline"} class="{kind}" points="{body}"/>'


def circle(x: float, y: float, radius: float, kind: str, tip: str = "") -> str:
    """A dot, with a tooltip."""
    return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}"{_tip(tip, "circle")}'


def diamond(x: float, y: float, radius: float, kind: str, tip: str = "") -> str:
    """A square on its corner, with a tooltip."""
    corners = [(x, y - radius), (x + radius, y), (x, y + radius), (x - radius, y)]
    body = " ".join(f"{a:.1f},{b:.1f}" for a, b in corners)
    return f'<polygon class="{kind}" points="{body}"{_tip(tip, "polygon")}'


def _tip(tip: str, tag: str) -> str:
    # A title works without scripts; the page's script replaces it by a quicker, better-looking one.
    return f' data-tip="1"><title>{escape(tip)}</title></{tag}>' if tip else "/>"


def text(x: float, y: float, content: str, kind: str, anchor: str = "start") -> str:
    """A line of text."""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(content)}</text>'


# ---------------------------------------------------------------------------------- label placement


@dataclass(frozen=True)
class Label:
    """Text that belongs to a mark at (x, y)."""

    x: float
    y: float
    content: str
    kind: str = "label"


def place_labels(labels: Sequence[Label], obstacles: Sequence[Box], frame: Box) -> str:
    """Labels near their marks where they cover least: of other labels, of marks, of the world outside.

    Tried at growing distance in eight directions; a label that ends up far away gets a leader line.
    """
    taken = list(obstacles)
    parts = []
    for label in labels:
        width = CHARACTER_PX * len(label.content)
        spots = [
            (cost + 0.6 * distance, box)
            for distance in (12, 20, 30, 42, 56, 74)
            for box in _spots(label, width, distance)
            for cost in [sum(_overlap(box, other) for other in taken) + 20 * _outside(box, frame)]
        ]
        _, box = min(spots, key=lambda spot: spot[0])
        taken.append(box)
        x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        near_x, near_y = min(max(label.x, box[0]), box[2]), min(max(label.y, box[1]), box[3])
        if math.hypot(near_x - label.x, near_y - label.y) > 14:
            parts.append(line(label.x, label.y, near_x, near_y, "leader"))
        parts.append(text(x, y + 4, label.content, label.kind, "middle"))
    return "".join(parts)


def _spots(label: Label, width: float, distance: float) -> list[Box]:
    spots = []
    for dx, dy in ((1, 0), (-1, 0), (0, -1), (0, 1), (1, -1), (-1, -1), (1, 1), (-1, 1)):
        shift = distance if dx == 0 or dy == 0 else 0.75 * distance
        x = label.x + dx * (shift + width / 2)
        y = label.y + dy * (shift + LINE_PX / 2)
        spots.append((x - width / 2, y - LINE_PX / 2, x + width / 2, y + LINE_PX / 2))
    return spots


def _overlap(one: Box, two: Box) -> float:
    wide = min(one[2], two[2]) - max(one[0], two[0])
    high = min(one[3], two[3]) - max(one[1], two[1])
    return max(wide, 0.0) * max(high, 0.0)


def _outside(box: Box, frame: Box) -> float:
    beyond = (frame[0] - box[0], frame[1] - box[1], box[2] - frame[2], box[3] - frame[3])
    return sum(max(distance, 0.0) for distance in beyond)
