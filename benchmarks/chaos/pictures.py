"""The timeline of a stage: answers a second, p99 and fallback share over time, the faults as bands."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np

from benchmarks.chaos.episodes import timeline
from benchmarks.chaos.measure import StageResult
from benchmarks.load.records import Array
from ray_train.svg import Axis, Plot, line, path, text

WIDTH, STRIP = 1130.0, 150.0
MARGIN = (8.0, 110.0, 40.0, 58.0)


def stage_timeline(stage: StageResult) -> str:
    """Three strips over one time axis, under the faults' names."""
    seen = timeline(stage.records)
    begin = stage.records.began_s
    end_s = float(seen.at_s[-1]) if len(seen.at_s) else 1.0
    calm = stage.calm.p99_ms
    strips = [
        ("answers/s", [(seen.rate_per_s, "c0"), (_where_any(seen.failed_per_s), "c3")], None),
        ("p99, ms", [(_capped(seen.p99_ms, calm), "c1")], calm),
        ("fallback share", [(seen.fallback, "c2")], None),
    ]
    bands = [(e.began_s - begin, e.works_s - begin, e.title) for e in stage.episodes]
    names_px = 24.0 + 4.6 * max((len(title) for _, _, title in bands), default=0)
    parts = [_names(bands, end_s, names_px)]
    for number, (title, curves, reference) in enumerate(strips):
        high = max((float(np.nanmax(v)) for v, _ in curves if not np.isnan(v).all()), default=1.0)
        top = 1.0 if title == "fallback share" else 1.1 * max(high, 1e-9)
        last = number == len(strips) - 1
        axis = Axis(0.0, end_s, "seconds" if last else "")
        plot = Plot(WIDTH, STRIP, axis, Axis(0.0, top, title), f"{title} over time", margin=MARGIN)
        for start, stop, _ in bands:
            left, right = plot.x(start), plot.x(max(stop, start + 0.2))
            _, upper, _, lower = plot.frame
            corners = [(left, upper), (right, upper), (right, lower), (left, lower)]
            plot.add(path(corners, "fault", closed=True))
        if reference is not None:
            plot.add(line(plot.x(0), plot.y(reference), plot.x(end_s), plot.y(reference), "reference"))
        for values, kind in curves:
            for points in _unbroken(seen.at_s, values):
                plot.add(path([(plot.x(a), plot.y(b)) for a, b in points], f"curve {kind}"))
        parts.append(
            f'<g transform="translate(0 {names_px + number * STRIP:g})">'
            f"{_inner(plot.render(f'{stage.name}{number}'))}</g>"
        )
    height = names_px + STRIP * len(strips)
    return (
        f'<svg viewBox="0 0 {WIDTH:g} {height:g}" role="img" '
        f'aria-label="Timeline of the faults of stage {stage.name}">{"".join(parts)}</svg>'
    )


def _where_any(values: Array) -> Array:
    """Nothing is drawn where nothing failed."""
    return np.asarray(np.where(values > 0, values, np.nan))


def _capped(values: Array, calm: float | None) -> Array:
    """Seconds of waiting for a ranker would flatten the milliseconds that matter."""
    limit = 8.0 * calm if calm else math.inf
    return np.asarray(np.minimum(values, limit))


def _names(bands: list[tuple[float, float, str]], end_s: float, names_px: float) -> str:
    left, right = MARGIN[3], WIDTH - MARGIN[1]
    marks, floor = [], -math.inf
    for start, stop, title in bands:
        x = left + (start + stop) / 2 / end_s * (right - left)
        place = max(x, floor + 13)
        floor = place
        marks.append(
            f'<g transform="translate({place + 4:.1f} {names_px - 6:.1f}) rotate(-42)">'
            f"{text(0, 0, title, 'fault-name')}</g>"
        )
        marks.append(line(place, names_px - 4, x, names_px + MARGIN[0], "leader"))
    return "".join(marks)


def _inner(svg: str) -> str:
    return svg[svg.index(">") + 1 : svg.rindex("</svg>")]


def _unbroken(at: Array, values: Array) -> list[list[tuple[float, float]]]:
    """Stretches without gaps."""
    known = np.flatnonzero(~np.isnan(values))
    if not len(known):
        return []
    cuts = [0, *(i + 1 for i, (a, b) in enumerate(pairwise(known)) if b != a + 1), len(known)]
    return [[(float(at[i]), float(values[i])) for i in known[begin:end]] for begin, end in pairwise(cuts)]
