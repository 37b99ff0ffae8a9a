"""The pictures of a frontier, as SVG text. Lifts are drawn in percent; production is the origin."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import combinations

from ray_train import svg
from ray_train.svg import Axis, Box, Label, Plot
from triton_models.frontier import Bounds, Estimate, Frontier, Point

MAX_PAIRS = 6
"""Pairwise panels shown for more than two objectives."""

Series = Sequence[tuple[float, float | None, Bounds | None]]
"""(x, y, interval of y), y null where the logs cannot tell."""


def percent(value: float | None, bounds: Bounds | None = None) -> str:
    """``+1.30 % [+0.20, +2.40]``; a dash where the logs cannot tell."""
    if value is None:
        return "–"
    text = f"{svg.number(100 * value, 2, signed=True)} %"
    if bounds is None:
        return text
    low, high = (svg.number(100 * bound, 2, signed=True) for bound in bounds)
    return f"{text} [{low}, {high}]"


def scalarization_text(point: Point) -> str:
    """``α = 0.25`` for two objectives, else λ."""
    if len(point.scalarization) == 2:
        return f"α = {point.scalarization[1]:.3g}"
    return f"λ = ({', '.join(f'{value:.3g}' for value in point.scalarization)})"


def describe(frontier: Frontier, estimate: Estimate, title: str) -> str:
    """The tooltip of a policy: one line per fact."""
    surface = frontier.surface_object
    lines = [title]
    lines += [
        f"{name} {percent(estimate.lifts[name], estimate.bands()[name])}" for name in surface.objectives
    ]
    lines += [
        f"{name} {percent(metric.lift, metric.simultaneous or metric.interval)}"
        for name, metric in estimate.metrics.items()
    ]
    weights = ", ".join(f"{head} {estimate.mean_weights[head]:.4g}" for head in surface.controlled_heads)
    lines += [f"mean weights: {weights}", f"{estimate.hits:,} hits"]
    return "\n".join(lines)


def labels_by_point(frontier: Frontier) -> dict[int, str]:
    """Index of a candidate's point → its labels, joined where they share a point."""
    labels: dict[int, list[str]] = {}
    for label, candidate in frontier.candidates.items():
        labels.setdefault(candidate.point, []).append(label)
    return {point: ", ".join(names) for point, names in labels.items()}


# ------------------------------------------------------------------------------------------ scatter


def objective_pairs(frontier: Frontier) -> list[tuple[str, str]]:
    """The pairs of objectives that get a scatter panel."""
    return list(combinations(frontier.surface_object.objectives, 2))[:MAX_PAIRS]


def scatter(
    frontier: Frontier,
    pair: tuple[str, str],
    identity: str,
    *,
    cohort: str | None = None,
    size: tuple[float, float] = (680, 460),
    axes: tuple[Axis, Axis] | None = None,
) -> str:
    """Lift of one objective against another, for one cohort or everybody."""
    points = frontier.points_of(cohort)
    one, two = pair
    who = cohort or "everybody"
    between = frontier.points_of(cohort, extrapolated=True)
    x_axis, y_axis = axes or scatter_axes(frontier, pair, (*points, *between))
    plot = Plot(
        *size,
        x_axis,
        y_axis,
        label=f"Lift of {two} against lift of {one}, {who}; the figures are in the table below",
        title=f"{who} ({baseline_rows(frontier, cohort):,} rows)" if cohort else "",
        margin=(30 if cohort else 14, 16, 46, 58),
    )
    front = [point for point in points if not point.dominated]
    for point in front:
        _whiskers(plot, point, pair, "whisker")
    if len(frontier.surface_object.objectives) == 2:
        ordered = sorted(_xy(plot, point, pair) for point in front)
        plot.add(svg.path(ordered, "front-line"))
    for point in sorted(points, key=lambda point: not point.dominated):
        spot = _spot(plot, point, pair)
        if spot:
            kind = "pale" if point.dominated else "front"
            tip = describe(frontier, point, scalarization_text(point))
            plot.add(svg.circle(*spot, 3.5 if point.dominated else 4.5, kind, tip))
    for point in between:
        if spot := _spot(plot, point, pair):
            tip = describe(frontier, point, f"{scalarization_text(point)}, weights between those explored")
            plot.add(svg.circle(*spot, 4, "extrapolated", tip))
    plot.add(svg.circle(plot.x(0), plot.y(0), 5, "production", "production"))
    if cohort is None:
        _mark_candidates(plot, frontier, pair)
    return plot.render(identity)


def scatter_axes(frontier: Frontier, pair: tuple[str, str], points: Iterable[Point]) -> tuple[Axis, Axis]:
    """Axes for the lifts of some points, with production, and the whiskers as far as they fit."""
    shown = list(points)
    static = [item.matched_static for item in frontier.candidates.values() if item.matched_static]
    axes = []
    for name in pair:
        lifts = [estimate.lifts[name] for estimate in (*shown, *static)]
        core = [100 * lift for lift in lifts if lift is not None]
        pairs = [point.bands()[name] for point in shown if not (point.dominated or point.extrapolated)]
        extra = [100 * bound for bounds in pairs if bounds for bound in bounds]
        axes.append(Axis.around([0.0, *core], extra, title=f"{name} lift, %", signed=True))
    return axes[0], axes[1]


def baseline_rows(frontier: Frontier, cohort: str | None) -> int:
    """Rows behind a cohort's estimates."""
    baseline = frontier.production.estimate(cohort)
    return baseline.rows if baseline else 0


def _mark_candidates(plot: Plot, frontier: Frontier, pair: tuple[str, str]) -> None:
    x, y = plot.x(0), plot.y(0)
    left, top, right, bottom = plot.frame
    obstacles: list[Box] = [_around(x, y, 7), (left, y - 1, right, y + 1), (x - 1, top, x + 1, bottom)]
    for point in frontier.points_of(None):
        spot = _spot(plot, point, pair)
        if spot:
            obstacles.append(_around(*spot, 5))
    labels = [Label(x, y, "production", "label quiet")]
    for index, text in labels_by_point(frontier).items():
        point, spot = frontier.points[index], _spot(plot, frontier.points[index], pair)
        if spot is None:
            continue
        label = next(name for name, item in frontier.candidates.items() if item.point == index)
        static = frontier.candidates[label].matched_static
        static_spot = _spot(plot, static, pair) if static else None
        if static and static_spot:
            plot.add(svg.line(*spot, *static_spot, "tie"))
            tip = describe(frontier, static, f"static weights matched to {text}")
            plot.add(svg.diamond(*static_spot, 5.5, "static", tip))
            obstacles.append(_around(*static_spot, 6))
        obstacles += _whiskers(plot, point, pair, "whisker strong")
        tip = describe(frontier, point, f"{text}, {scalarization_text(point)}")
        plot.add(svg.circle(*spot, 6.5, "candidate", tip))
        obstacles.append(_around(*spot, 8))
        labels.append(Label(*spot, text))
    plot.write(svg.place_labels(labels, obstacles, plot.frame))


def _around(x: float, y: float, radius: float) -> Box:
    return x - radius, y - radius, x + radius, y + radius


def _spot(plot: Plot, estimate: Estimate, pair: tuple[str, str]) -> tuple[float, float] | None:
    x, y = (estimate.lifts[name] for name in pair)
    return None if x is None or y is None else (plot.x(100 * x), plot.y(100 * y))


def _xy(plot: Plot, estimate: Estimate, pair: tuple[str, str]) -> tuple[float, float]:
    return _spot(plot, estimate, pair) or (plot.x(0), plot.y(0))


def _whiskers(plot: Plot, estimate: Estimate, pair: tuple[str, str], kind: str) -> list[Box]:
    """Draw the intervals of both lifts; the room they take, for labels to keep clear of."""
    spot = _spot(plot, estimate, pair)
    if spot is None:
        return []
    (x, y), boxes = spot, []
    across, along = (estimate.bands()[name] for name in pair)
    if across:
        boxes.append((plot.x(100 * across[0]), y, plot.x(100 * across[1]), y))
    if along:
        boxes.append((x, plot.y(100 * along[1]), x, plot.y(100 * along[0])))
    for box in boxes:
        plot.add(svg.line(*box, kind))
    return [(left - 1, top - 1, right + 1, bottom + 1) for left, top, right, bottom in boxes]


# ------------------------------------------------------------------------------------------- curves


def curve(
    frontier: Frontier,
    identity: str,
    *,
    title: str,
    y_title: str,
    series: dict[str, Series],
    reference: tuple[float, str] | None = None,
    signed: bool = False,
    bands: bool = True,
    outer: Series = (),
) -> str:
    """Curves against α with interval bands; one label per curve at its right end if there are several.

    ``outer`` holds the simultaneous bands of a single curve, drawn fainter around its intervals.
    """
    flat = [item for items in (*series.values(), outer) for item in items]
    core = [y for _, y, _ in flat if y is not None] + ([reference[0]] if reference else [])
    extra = [bound for _, _, bounds in flat if bounds and bands for bound in bounds]
    alphas = [x for x, _, _ in flat]
    pad = 0.02 * (max(alphas) - min(alphas))
    many = len(series) > 1
    longest = max(len(name) for name in series)
    plot = Plot(
        430,
        270,
        Axis(min(alphas) - pad, max(alphas) + pad, _alpha_title(frontier)),
        Axis.around(core, extra, title=y_title, signed=signed),
        label=f"{title} against α",
        title=title,
        margin=(30, 18 + (svg.CHARACTER_PX * longest + 4 if many else 0), 46, 58),
    )
    if reference:
        plot.add(
            svg.line(
                plot.x(min(alphas)),
                plot.y(reference[0]),
                plot.x(max(alphas)),
                plot.y(reference[0]),
                "reference",
            )
        )
        plot.write(svg.text(plot.frame[2] - 4, plot.y(reference[0]) - 5, reference[1], "label quiet", "end"))
    for run in _runs(outer):
        _draw_band(plot, run, "band outer c0")
    for number, (name, items) in enumerate(series.items()):
        _draw_series(plot, name if many else "", items, number if many else 0, bands=bands)
    if many:
        _label_ends(plot, series)
    return plot.render(identity)


def _alpha_title(frontier: Frontier) -> str:
    one, two = frontier.surface_object.objectives
    return f"α (0: {one} only, 1: {two} only)"


def _draw_series(plot: Plot, name: str, items: Series, number: int, *, bands: bool) -> None:
    colour = f"c{number % 6}"
    for run in _runs(items):
        if bands:
            _draw_band(plot, run, f"band {colour}")
        plot.add(svg.path([(plot.x(x), plot.y(y)) for x, y, _ in run if y is not None], f"curve {colour}"))
        for x, y, bounds in run:
            if y is not None:
                tip = f"{name} α = {x:.3g}: {y:.4g}".strip()
                tip += f" [{bounds[0]:.4g}, {bounds[1]:.4g}]" if bounds else ""
                plot.add(svg.circle(plot.x(x), plot.y(y), 2.6, f"dot {colour}", tip))


def _draw_band(plot: Plot, run: Series, kind: str) -> None:
    known = [(x, bounds) for x, _, bounds in run if bounds]
    if len(known) > 1:
        upper = [(plot.x(x), plot.y(bounds[1])) for x, bounds in known]
        lower = [(plot.x(x), plot.y(bounds[0])) for x, bounds in reversed(known)]
        plot.add(svg.path([*upper, *lower], kind, closed=True))


def _runs(items: Series) -> list[Series]:
    """Stretches without a gap."""
    runs: list[list[tuple[float, float | None, Bounds | None]]] = [[]]
    for item in items:
        if item[1] is None:
            runs.append([])
        else:
            runs[-1].append(item)
    return [run for run in runs if run]


def _label_ends(plot: Plot, series: dict[str, Series]) -> None:
    ends: list[tuple[float, int, str]] = []
    for order, (name, items) in enumerate(series.items()):
        known = [y for _, y, _ in items if y is not None]
        if known:
            ends.append((plot.y(known[-1]), order, name))
    last = float("-inf")
    for y, order, name in sorted(ends):
        last = max(y, last + svg.LINE_PX)
        plot.write(svg.text(plot.frame[2] + 5, last + 4, name, f"label c{order % 6}"))


def lift_series(points: Sequence[Point], objective: str, *, together: bool = False) -> Series:
    """Lifts of an objective in percent against α, with their intervals or simultaneous bands."""
    return [
        (
            point.scalarization[1],
            _percent(point.lifts[objective]),
            _percents((point.bands() if together else point.intervals)[objective]),
        )
        for point in points
    ]


def metric_series(points: Sequence[Point], metric: str, *, together: bool = False) -> Series:
    """Lifts of a guardrail metric in percent against α, with their intervals or simultaneous bands."""
    estimates = [point.metrics[metric] for point in points]
    return [
        (
            point.scalarization[1],
            _percent(one.lift),
            _percents(one.simultaneous if together else one.interval),
        )
        for point, one in zip(points, estimates, strict=True)
    ]


def weight_series(points: Sequence[Point], head: str) -> Series:
    """Mean weights of a head against α."""
    return [(point.scalarization[1], point.mean_weights[head], None) for point in points]


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _percents(bounds: Bounds | None) -> Bounds | None:
    return None if bounds is None else (100 * bounds[0], 100 * bounds[1])


# ------------------------------------------------------------------------------------------- forest


def forest(
    title: str,
    identity: str,
    rows: Sequence[tuple[str, bool, float | None, Bounds | None]],
    tip: Callable[[int], str],
) -> str:
    """Lifts of one outcome side by side: (name, static?, lift, interval) from top to bottom."""
    core = [100 * lift for _, _, lift, _ in rows if lift is not None]
    extra = [100 * bound for _, _, _, bounds in rows if bounds for bound in bounds]
    left = 12 + svg.CHARACTER_PX * max(len(name) for name, *_ in rows)
    height = 30 + 46 + 24 * len(rows)
    axis = Axis.around([0.0, *core, *extra], title=f"{title} lift, %", signed=True)
    plot = Plot(
        430,
        height,
        axis,
        Axis(0, len(rows), ""),
        label=f"Lift of {title} by candidate",
        title=title,
        margin=(30, 16, 46, left),
        y_ticks=False,
    )
    for i, (name, static, lift, bounds) in enumerate(rows):
        y = plot.y(len(rows) - i - 0.5)
        plot.write(svg.text(left - 8, y + 4, name, "label quiet" if static else "label", "end"))
        if bounds:
            kind = "whisker static-line" if static else "whisker strong"
            plot.add(svg.line(plot.x(100 * bounds[0]), y, plot.x(100 * bounds[1]), y, kind))
        if lift is not None:
            mark = svg.diamond if static else svg.circle
            plot.add(mark(plot.x(100 * lift), y, 5, "static" if static else "candidate", tip(i)))
    return plot.render(identity)
