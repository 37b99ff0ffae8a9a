"""The cells of a folder → a table and pictures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.learning.cells import ALPHAS, read_cell
from triton_models.errors import BenchmarkError
from triton_models.files import write_atomically

Key = tuple[str, int, str]
T_95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}
"""Student's t for a 95 % interval, by number of seeds; beyond: 2."""
COLOURS = ("#1b6ca8", "#c8553d", "#5b8c5a", "#8f5aa8", "#b8860b", "#555555")
WIDTH, HEIGHT, LEFT, BOTTOM = 640, 340, 60, 40


def write_report(folder: Path) -> str:
    """``learning.md`` and ``learning.html`` of all cells in a folder.

    Returns:
        The table.

    Raises:
        BenchmarkError: there is no cell, or a damaged one.
    """
    cells = [read_cell(file) for file in sorted((folder / "cells").glob("*.json"))]
    if not cells:
        raise BenchmarkError(f"{folder}: holds no cells of the learning benchmark")
    groups: dict[Key, list[dict[str, Any]]] = defaultdict(list)
    for cell in cells:
        groups[cell["feed"], cell["rows"], cell["learner"]].append(cell)
    text = "\n".join(_feed_table(feed, groups) for feed in sorted({key[0] for key in groups}))
    write_atomically(folder / "learning.md", text)
    pictures = "".join(_picture(feed, groups) for feed in sorted({key[0] for key in groups}))
    page = (
        "<!doctype html><meta charset=utf-8><title>Learning</title>"
        "<style>body{font:15px system-ui;max-width:52em;margin:2em auto;color:#222}"
        "pre{font-size:12px;overflow-x:auto}</style>"
        f"<h1>Share of the achievable personalization gain captured</h1>{pictures}<pre>{escape(text)}</pre>"
    )
    write_atomically(folder / "learning.html", page)
    return text


def mean_and_interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean over seeds and half of its 95 % interval (Student); NaN for one seed."""
    if len(values) < 2:
        return float(values[0]), float("nan")
    half = T_95.get(len(values), 2.0) * float(np.std(values, ddof=1)) / len(values) ** 0.5
    return float(np.mean(values)), half


def _feed_table(feed: str, groups: dict[Key, list[dict[str, Any]]]) -> str:
    alphas = " | ".join(f"α {alpha}" for alpha in ALPHAS)
    lines = [
        f"### {feed}",
        "",
        f"| rows | learner | captured, mean | seeds | least, most | {alphas} | core s | gate |",
        "|" + "---|" * (7 + len(ALPHAS)),
    ]
    chosen = {key: cells for key, cells in groups.items() if key[0] == feed}
    for (_, rows, learner), cells in sorted(chosen.items(), key=lambda item: (item[0][1], item[0][2])):
        means = [cell["mean"] for cell in cells]
        mean, half = mean_and_interval(means)
        per_alpha = " | ".join(f"{x:.2f}" for x in np.mean([cell["captured"] for cell in cells], axis=0))
        cpu_s = float(np.mean([cell["cpu_s"] for cell in cells]))
        lines.append(
            f"| {rows:,} | {learner} | {mean:.3f} ± {half:.3f} | {len(cells)} "
            f"| {min(means):.2f}, {max(means):.2f} | {per_alpha} | {cpu_s:.0f} | {_verdicts(cells)} |"
        )
    one = next(iter(chosen.values()))
    for name in ("production", "uniform"):
        values = np.mean([cell["references"][name] for cell in one], axis=0)
        lines.append(f"| | {name} | {values.mean():.2f} | | | {' | '.join(f'{x:.2f}' for x in values)} | | |")
    gain = np.mean([cell["references"]["gain"] for cell in one], axis=0)
    lines += ["", f"Achievable gain, % of production's value: {', '.join(f'{x:.2%}' for x in gain)}.", ""]
    return "\n".join(lines)


def _verdicts(cells: Sequence[dict[str, Any]]) -> str:
    levels = [cell["verdict"]["level"] for cell in cells if cell["verdict"]]
    return ", ".join(f"{levels.count(level)} × {level}" for level in sorted(set(levels)))


def _picture(feed: str, groups: dict[Key, list[dict[str, Any]]]) -> str:
    """Captured share over the size of the log, one line a learner, bars the interval over seeds."""
    lines: dict[str, list[tuple[int, float, float]]] = defaultdict(list)
    for (name, rows, learner), cells in sorted(groups.items(), key=lambda item: item[0][1]):
        if name == feed:
            lines[learner].append((rows, *mean_and_interval([cell["mean"] for cell in cells])))
    sizes = [rows for points in lines.values() for rows, _, _ in points]
    low, high = np.log(min(sizes) * 0.9), np.log(max(sizes) * 1.1)
    bottom = max(-1.0, min(0.0, *(value for points in lines.values() for _, value, _ in points)) - 0.1)

    def x(rows: float) -> float:
        return float(LEFT + (np.log(rows) - low) / (high - low) * (WIDTH - LEFT - 130))

    def y(value: float) -> float:
        return (HEIGHT - BOTTOM) * (1.0 - (max(value, bottom) - bottom) / (1.0 - bottom)) + 5

    parts = [
        f'<h2>{escape(feed)}</h2><svg viewBox="0 0 {WIDTH} {HEIGHT + 20}" role="img" '
        f'aria-label="captured share by rows" font-size="12">'
    ]
    for tick in (-1.0, -0.5, 0.0, 0.25, 0.5, 0.75, 1.0):
        if tick >= bottom:
            parts.append(
                f'<path d="M{LEFT} {y(tick):.1f}H{WIDTH - 130}" stroke="{"#888" if tick == 0 else "#ddd"}"/>'
                f'<text x="{LEFT - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>'
            )
    for rows in sorted(set(sizes)):
        parts.append(f'<text x="{x(rows):.1f}" y="{HEIGHT - 12}" text-anchor="middle">{rows // 1000}k</text>')
    parts.append(f'<text x="{LEFT}" y="{HEIGHT + 8}">rows of the log (log scale)</text>')
    for number, (learner, points) in enumerate(sorted(lines.items())):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(f"{x(rows):.1f},{y(value):.1f}" for rows, value, _ in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for rows, value, half in points:
            parts.append(f'<circle cx="{x(rows):.1f}" cy="{y(value):.1f}" r="3.5" fill="{colour}"/>')
            if np.isfinite(half):
                ends = f"{x(rows):.1f} {y(value - half):.1f}V{y(min(1.0, value + half)):.1f}"
                parts.append(f'<path d="M{ends}" stroke="{colour}"/>')
        parts.append(
            f'<rect x="{WIDTH - 120}" y="{12 + 20 * number}" width="10" height="10" fill="{colour}"/>'
            f'<text x="{WIDTH - 105}" y="{21 + 20 * number}">{escape(learner)}</text>'
        )
    return "".join(parts) + "</svg>"
