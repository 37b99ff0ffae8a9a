"""The learning curve of a run: ``learning.json`` for programs, ``learning.html`` for people.

The page is one file without scripts or anything from elsewhere; the picture is inline SVG.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

WIDTH, HEIGHT, MARGIN = 760, 380, 56
LINES = (
    ("train_loss", "training rows", "#4269d0"),
    ("selection_loss", "newest training rows, kept back to choose the epoch", "#e8590c"),
    ("holdout_loss", "hold-out sample (nothing is chosen by it)", "#2b8a3e"),
)
STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:820px;margin:2rem auto;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse}td,th{padding:.2rem .8rem;text-align:right;"
    "border-bottom:1px solid #ddd}tr.best{background:#fff3e6}svg{width:100%;height:auto}"
)

History = Sequence[Mapping[str, float]]


def learning_html(title: str, history: History, *, best_epoch: int, constant_loss: float) -> str:
    """The page; ``constant_loss`` is the loss of answering the base rates to every request."""
    rows = "".join(
        f"<tr{' class=best' if record['epoch'] == best_epoch else ''}><td>{record['epoch']:g}</td>"
        + "".join(f"<td>{_number(record.get(key, math.nan))}</td>" for key, _, _ in LINES)
        + f"<td>{record['rows'] / max(record['seconds'], 1e-9):,.0f}</td></tr>"
        for record in history
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{STYLE}</style></head><body><h1>{html.escape(title)}</h1>"
        f"<p>Loss per row after each epoch. Kept: epoch {best_epoch}. The dotted line is the loss of a "
        f"constant answer, {_number(constant_loss)}.</p>{learning_svg(history, best_epoch, constant_loss)}"
        "<table><tr><th>epoch</th><th>training</th><th>selection</th><th>hold-out sample</th>"
        f"<th>rows/s</th></tr>{rows}</table></body></html>\n"
    )


def _number(value: Any) -> str:
    return f"{value:.5f}" if math.isfinite(value) else "–"


def learning_svg(history: History, best_epoch: int, constant_loss: float) -> str:
    """The curves as one SVG element."""
    values = [
        record[key] for record in history for key, _, _ in LINES if math.isfinite(record.get(key, math.nan))
    ]
    values += [constant_loss] if math.isfinite(constant_loss) else []
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    pad = (high - low) * 0.08 or 1e-3
    low, high = low - pad, high + pad
    epochs = max(len(history), 1)

    def x(epoch: float) -> float:
        return MARGIN + (epoch - 1) / max(epochs - 1, 1) * (WIDTH - 2 * MARGIN)

    def y(value: float) -> float:
        return HEIGHT - MARGIN - (value - low) / (high - low) * (HEIGHT - 2 * MARGIN)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="loss by epoch">']
    for i in range(5):
        value = low + (high - low) * i / 4
        level = y(value)
        parts.append(
            f'<line x1="{MARGIN}" x2="{WIDTH - MARGIN}" y1="{level:.1f}" y2="{level:.1f}" stroke="#eee"/>'
            f'<text x="{MARGIN - 6}" y="{level + 4:.1f}" font-size="11" text-anchor="end">{value:.4f}</text>'
        )
    for epoch in range(1, epochs + 1, max(1, epochs // 12)):
        parts.append(
            f'<text x="{x(epoch):.1f}" y="{HEIGHT - MARGIN + 18}" font-size="11" '
            f'text-anchor="middle">{epoch}</text>'
        )
    if math.isfinite(constant_loss):
        level = y(constant_loss)
        parts.append(
            f'<line x1="{MARGIN}" x2="{WIDTH - MARGIN}" y1="{level:.1f}" y2="{level:.1f}" stroke="#888" '
            'stroke-dasharray="2 4"/>'
        )
    for number, (key, label, color) in enumerate(LINES):
        points = [(x(r["epoch"]), y(r[key])) for r in history if math.isfinite(r.get(key, math.nan))]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>')
        parts += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="{color}"/>' for a, b in points]
        parts.append(
            f'<text x="{WIDTH - MARGIN}" y="{20 + 16 * number}" font-size="12" text-anchor="end" '
            f'fill="{color}">{label}</text>'
        )
    if best_epoch:
        parts.append(
            f'<line x1="{x(best_epoch):.1f}" x2="{x(best_epoch):.1f}" y1="{MARGIN}" y2="{HEIGHT - MARGIN}" '
            'stroke="#e8590c" stroke-dasharray="4 3"/>'
        )
    return "".join([*parts, "</svg>"])
