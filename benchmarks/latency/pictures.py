"""The measurement as pictures: latencies with the control on and off, what is added block by block, P3."""

from __future__ import annotations

import numpy as np

from benchmarks.latency.blocks import Added, Estimate
from benchmarks.latency.measure import Measured, Paired
from ray_train.svg import Axis, Plot, circle, line, number, path, text

WIDTH, HEIGHT = 520.0, 300.0
TAIL = 0.995
"""The distributions are drawn up to this quantile."""
ARMS = (("control on", "c0"), ("control off", "c1"))


def distributions(one: Paired, identity: str) -> str:
    """Share of requests that were faster, by milliseconds, control on and off."""
    on = np.concatenate([block.on_ms for block in one.blocks])
    off = np.concatenate([block.off_ms for block in one.blocks])
    high = float(max(np.quantile(on, TAIL), np.quantile(off, TAIL)))
    low = float(min(on.min(), off.min()))
    plot = Plot(
        WIDTH,
        HEIGHT,
        Axis(max(0.0, low - 0.05 * (high - low)), high, "ms from when the request was due"),
        Axis(0.0, 1.0, "share of requests answered"),
        f"Latency with the control on and off: {one.part} {one.title}, {one.loop}",
    )
    levels = np.concatenate([np.linspace(0.0, 0.98, 99), np.linspace(0.981, TAIL, 20)])
    for values, (label, kind) in zip((on, off), ARMS, strict=True):
        places = np.quantile(values, levels)
        marks = zip(places.tolist(), levels.tolist(), strict=True)
        plot.add(path([(plot.x(x), plot.y(y)) for x, y in marks], f"curve {kind}"))
        for level in (0.5, 0.99):
            at = float(np.quantile(values, level))
            tip = f"{label}\np{level * 100:.0f} {at:.2f} ms"
            plot.add(circle(plot.x(at), plot.y(level), 4, kind, tip))
    _, _, right, bottom = plot.frame
    for row, (label, kind) in enumerate(ARMS):
        y = bottom - 44 + 18 * row
        plot.write(line(right - 116, y - 4, right - 96, y - 4, f"curve {kind}"))
        plot.write(text(right - 90, y, label, "tick"))
    return plot.render(identity)


def per_block(one: Paired, rows: tuple[Added, ...], identity: str) -> str:
    """Δp50 of every block, with the pooled difference and its interval as a band; limits of P1 dashed."""
    shown = [row for row in rows if row.level == 0.5]
    values = [value for row in shown for value in row.per_block]
    limit = [0.3] if one.part == "P1" else [1.0]
    blocks = len(one.blocks)
    plot = Plot(
        WIDTH,
        HEIGHT,
        Axis(0.2, blocks + 0.8, "block"),
        Axis.around(values, [0.0, *limit], title="added at p50, ms", signed=True),
        f"What the control adds at the median, block by block: {one.part} {one.title}",
    )
    for row in shown:
        estimate = row.difference
        left, right = plot.x(0.2), plot.x(blocks + 0.8)
        high, low = plot.y(estimate.high), plot.y(estimate.low)
        plot.add(path([(left, high), (right, high), (right, low), (left, low)], "band c0", closed=True))
        plot.add(line(left, plot.y(estimate.value), right, plot.y(estimate.value), "curve c0"))
        for block, value in enumerate(row.per_block, start=1):
            tip = f"block {block}: {value:+.3f} ms"
            plot.add(circle(plot.x(block), plot.y(value), 3.5, "c0", tip))
        word = f"Δp50 {_with_interval(estimate)} ms"
        plot.write(text(plot.frame[0] + 8, plot.frame[1] + 16, word, "label"))
    for value in limit:
        plot.add(line(plot.x(0.2), plot.y(value), plot.x(blocks + 0.8), plot.y(value), "reference"))
    return plot.render(identity)


def _with_interval(estimate: Estimate) -> str:
    shown = [number(v, 2, signed=True) for v in (estimate.value, estimate.low, estimate.high)]
    return f"{shown[0]} [{shown[1]}, {shown[2]}]"


def capacities(measured: Measured, ratios: dict[str, Estimate]) -> str:
    """Requests/s of every contestant: a bar for the mean, a dot for every turn."""
    row, left, right = 44.0, 200.0, 680.0
    height = 30 + row * len(measured.capacity) + 24
    most = max(max(rates) for rates in measured.capacity.values())
    scale = (right - left) / (1.05 * most)
    marks = []
    for i, (name, rates) in enumerate(measured.capacity.items()):
        top, mean = 20 + row * i, sum(rates) / len(rates)
        marks.append(text(left - 10, top + 18, name, "tick", "end"))
        marks.append(
            f'<rect class="bar c{i % 6}" x="{left}" y="{top}" width="{mean * scale:.1f}" height="26"/>'
        )
        marks += [
            circle(left + r * scale, top + 13, 2.5, "production", f"{name}\n{r:.0f} requests/s")
            for r in rates
        ]
        label = f"{mean:.0f}/s"
        if name in ratios:
            label += f", {ratios[name].value:.2f} × bare"
        marks.append(text(left + most * scale + 12, top + 18, label, "label"))
    axis = text((left + right) / 2, height - 6, "requests/s; a dot for each turn", "axis", "middle")
    return (
        f'<svg viewBox="0 0 900 {height:g}" role="img" aria-label="Capacity of every contestant">'
        f"{''.join(marks)}{axis}</svg>"
    )
