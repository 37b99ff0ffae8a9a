"""The measurement as pictures: cost by batch size, shares of a call through Triton, share of the roofline."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from benchmarks.cost.measure import Measurement
from benchmarks.cost.measure_gpu import GpuFigure, GpuFigures
from benchmarks.cost.through_triton import PARTS, Shares
from ray_train.svg import circle, line, path, text

WIDTH = 820.0
LINE_PX = 16.0
COLORS = 8
"""Colour classes of :data:`benchmarks.cost.page.STYLE`."""


@dataclass(frozen=True)
class _Frame:
    left: float
    top: float
    right: float
    bottom: float


def cost_by_batch(measured: Measurement) -> str:
    """Microseconds per choice (logarithmic) over batch size, one line per contestant."""
    batches = sorted({figure.batch for figure in measured.figures})
    threads = measured.settings.threads
    values = [1e6 * t / f.batch for f in measured.figures for t in (f.times.low_s, f.times.high_s)]
    frame, height = _Frame(64, 16, WIDTH - 250, 380), 430
    low, high = math.log10(_round_down(0.9 * min(values))), -math.log10(_round_down(0.9 / max(values)))

    def x(batch: int) -> float:
        place = batches.index(batch) / max(len(batches) - 1, 1)
        return frame.left + 30 + place * (frame.right - frame.left - 60)

    def y(value: float) -> float:
        return frame.bottom - (math.log10(value) - low) / (high - low) * (frame.bottom - frame.top)

    marks = [*_decades(frame, low, high, y)]
    for batch in batches:
        marks.append(text(x(batch), frame.bottom + 17, str(batch), "tick", "middle"))
    ends: list[tuple[float, str, int]] = []
    for number, (key, label) in enumerate(measured.labels.items()):
        kind = f"c{number % COLORS}"
        figures = [found for batch in batches if (found := measured.figure(key, batch)) is not None]
        if not figures:
            continue
        marks.append(path([(x(f.batch), y(f.us_per_choice)) for f in figures], f"curve {kind}"))
        for f in figures:
            scale = f.us_per_choice / f.times.median_s
            tops = y(f.times.high_s * scale), y(f.times.low_s * scale)
            marks.append(line(x(f.batch), tops[0], x(f.batch), tops[1], f"spread {kind}"))
            tip = f"{label}\nbatch {f.batch}: {f.us_per_choice:,.1f} µs per choice\n"
            tip += f"{1e3 * f.times.median_s:,.3f} ms per call, {f.choices_per_s:,.0f} choices/s"
            marks.append(circle(x(f.batch), y(f.us_per_choice), 4, kind, tip))
        last = figures[-1]
        ends.append((y(last.us_per_choice), _shortened(label), number))
    marks += _end_labels(frame, ends)
    axis = text((frame.left + frame.right) / 2, height - 8, "requests in a batch", "axis", "middle")
    side = (
        f'<text class="axis" transform="translate(14 {(frame.top + frame.bottom) / 2:.1f}) rotate(-90)" '
        f'text-anchor="middle">µs per choice, {"one thread" if threads == 1 else f"{threads} threads"}</text>'
    )
    return _svg(height, "Cost of a choice by batch size and contestant", "".join(marks) + axis + side)


def _round_down(value: float) -> float:
    """The next 1, 2 or 5 times a power of ten below."""
    power = 10.0 ** math.floor(math.log10(value))
    return power * max(factor for factor in (1, 2, 5) if factor * power <= value)


def _decades(frame: _Frame, low: float, high: float, y: Callable[[float], float]) -> list[str]:
    """Grid lines at 1, 2 and 5 times each power of ten, labels at the powers, and the frame."""
    marks = []
    for power in range(math.floor(low), math.ceil(high) + 1):
        for factor in (1, 2, 5):
            value = factor * 10.0**power
            if not 0.999 * 10.0**low <= value <= 1.001 * 10.0**high:
                continue
            marks.append(line(frame.left, y(value), frame.right, y(value), "grid"))
            marks.append(text(frame.left - 7, y(value) + 4, f"{value:,g}", "tick", "end"))
    box = f'x="{frame.left}" y="{frame.top}"'
    size = f'width="{frame.right - frame.left}" height="{frame.bottom - frame.top}"'
    return [*marks, f'<rect class="frame" {box} {size}/>']


def _end_labels(frame: _Frame, ends: list[tuple[float, str, int]]) -> list[str]:
    """Names beside the ends of the lines, pushed apart where they would overlap."""
    marks, floor = [], frame.top
    for y, label, number in sorted(ends):
        place = max(y, floor + LINE_PX)
        floor = place
        marks.append(text(frame.right + 8, place + 4, label, f"label c{number % COLORS}"))
    return marks


def _shortened(label: str, limit: int = 32) -> str:
    return label if len(label) <= limit else label[: limit - 1] + "…"


def time_through_triton(shares: Sequence[Shares], labels: Mapping[str, str]) -> str:
    """One stacked bar per network and batch size: the shares of the mean call through Triton."""
    row, left, right = 34.0, 190.0, WIDTH - 150
    height = 24 + row * len(shares)
    marks = []
    for i, item in enumerate(shares):
        top = 12 + row * i
        parts = {part: max(span, 0.0) for part, span in item.parts_s.items()}
        total = sum(parts.values())
        name = f"{labels[item.subject]}, batch {item.batch}"
        marks.append(text(left - 10, top + 17, _shortened(name, 26), "tick-strong", "end"))
        start = left
        for number, part in enumerate(PARTS):
            width = parts[part] / total * (right - left)
            tip = f"{name}\n{part}: {1e3 * parts[part]:.3f} ms, {parts[part] / total:.0%}"
            marks.append(
                f'<rect class="c{number % COLORS}" x="{start:.1f}" y="{top}" width="{max(width, 0):.1f}" '
                f'height="24" data-tip="1"><title>{escape(tip)}</title></rect>'
            )
            share = f"{parts[part] / total:.0%}"
            if width > 30:
                marks.append(text(start + width / 2, top + 16, share, "inside", "middle"))
            start += width
        marks.append(text(right + 10, top + 17, f"{1e3 * total:.2f} ms a call", "tick-strong"))
    return _svg(height, "Shares of the time of a call through Triton", "".join(marks))


def parts_legend() -> str:
    """Colours of :func:`time_through_triton`."""
    return (
        '<ul class="legend">'
        + "".join(
            f'<li><i class="key k{number % COLORS}"></i>{part}</li>' for number, part in enumerate(PARTS)
        )
        + "</ul>"
    )


def roofline(found: GpuFigures) -> str:
    """Share of the roofline by batch size, the best mode of every network and precision."""
    batches = sorted({figure.batch for figure in found.figures})
    frame, height = _Frame(64, 16, WIDTH - 250, 320), 370
    groups: dict[str, dict[int, GpuFigure]] = {}
    for figure in found.figures:
        if figure.naive:
            continue
        best = groups.setdefault(figure.contestant.rsplit("/", 1)[0], {})
        if figure.batch not in best or figure.share > best[figure.batch].share:
            best[figure.batch] = figure

    def x(batch: int) -> float:
        return (
            frame.left
            + 30
            + batches.index(batch) / max(len(batches) - 1, 1) * (frame.right - frame.left - 60)
        )

    def y(share: float) -> float:
        return frame.bottom - min(share, 1.0) * (frame.bottom - frame.top)

    marks = [line(frame.left, y(tick / 10), frame.right, y(tick / 10), "grid") for tick in range(0, 11, 2)]
    marks += [text(frame.left - 7, y(t / 10) + 4, f"{10 * t} %", "tick", "end") for t in range(0, 11, 2)]
    marks.append(line(frame.left, y(0.5), frame.right, y(0.5), "reference"))
    marks += [text(x(batch), frame.bottom + 17, str(batch), "tick", "middle") for batch in batches]
    ends = []
    for number, best in enumerate(groups.values()):
        points = [(x(batch), y(figure.share)) for batch, figure in sorted(best.items())]
        marks.append(path(points, f"curve c{number % COLORS}"))
        for batch, figure in sorted(best.items()):
            tip = f"{found.labels[figure.contestant]}\nbatch {batch}: {figure.share:.1%} of the roofline"
            marks.append(circle(x(batch), y(figure.share), 4, f"c{number % COLORS}", tip))
        label = found.labels[next(iter(best.values())).contestant].rsplit(", ", 1)[0]
        ends.append((points[-1][1], _shortened(label), number))
    marks += _end_labels(frame, ends)
    axis = text((frame.left + frame.right) / 2, height - 8, "requests in a batch", "axis", "middle")
    return _svg(height, "Share of the roofline by batch size", "".join(marks) + axis)


def _svg(height: float, label: str, body: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH:g} {height:g}" role="img" aria-label="{escape(label)}">{body}</svg>'
