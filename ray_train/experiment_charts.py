"""The pictures of an experiment, as SVG text. Lifts are drawn in percent; the control is the origin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ray_train import svg
from ray_train.experiment_report import Experiment, Prediction
from ray_train.frontier_charts import percent
from ray_train.svg import Axis, Box, Label, Plot
from triton_models.frontier import Bounds

ROW_PX = 24


@dataclass(frozen=True, kw_only=True)
class LiftRow:
    """One line of a forest."""

    name: str
    lift: float | None
    interval: Bounds | None
    tip: str
    minor: bool = False
    """A part of the line above it."""


def forest(title: str, identity: str, rows: Sequence[LiftRow], limits: Sequence[float] = ()) -> str:
    """Lifts of one outcome from top to bottom, with the guardrail's limits as dashed lines."""
    core = [100 * row.lift for row in rows if row.lift is not None]
    extra = [100 * bound for row in rows if row.interval for bound in row.interval]
    marks = [100 * limit for limit in limits]
    left = 14 + svg.CHARACTER_PX * max(len(row.name) for row in rows)
    plot = Plot(
        430,
        30 + 46 + ROW_PX * len(rows),
        Axis.around([0.0, *core, *marks], extra, title="lift against the control, %", signed=True),
        Axis(0, len(rows), ""),
        label=f"Lift of {title} by arm and cohort; the figures are in the table below",
        title=title,
        margin=(30, 16, 46, left),
        y_ticks=False,
    )
    for mark in marks:
        _, top, _, bottom = plot.frame
        plot.add(svg.line(plot.x(mark), top, plot.x(mark), bottom, "reference"))
    for i, row in enumerate(rows):
        y = plot.y(len(rows) - i - 0.5)
        plot.write(svg.text(left - 8, y + 4, row.name, "label quiet" if row.minor else "label", "end"))
        if row.interval:
            low, high = (plot.x(100 * bound) for bound in row.interval)
            plot.add(svg.line(low, y, high, y, "whisker strong"))
        if row.lift is not None:
            radius, kind = (3.5, "front") if row.minor else (5.5, "candidate")
            plot.add(svg.circle(plot.x(100 * row.lift), y, radius, kind, row.tip))
        else:
            plot.write(svg.text(plot.frame[2] - 6, y + 4, "cannot tell", "label quiet", "end"))
    return plot.render(identity)


def predicted_and_measured(
    outcome: str, identity: str, points: Sequence[Prediction], names: Sequence[str], note: str
) -> str:
    """Measured against predicted lifts, with the line where they agree.

    Points of everybody have a label and both intervals; those of cohorts are pale dots.
    """
    known = [
        (x, y, p, name)
        for p, name in zip(points, names, strict=True)
        for x, y in [(p.predicted[outcome], p.measured[outcome])]
        if x is not None and y is not None
    ]
    spots = [100 * value for x, y, _, _ in known for value in (x, y)]
    whiskers = [
        100 * bound
        for _, _, p, _ in known
        if p.cohort is None
        for bounds in (p.predicted_intervals[outcome], p.measured_intervals[outcome])
        for bound in bounds or ()
    ]
    axis = Axis.around([0.0, *spots], whiskers, title="predicted from logs, %", signed=True)
    plot = Plot(
        430,
        356,
        axis,
        Axis(axis.low, axis.high, "measured online, %", signed=True),
        label=f"Measured against predicted lift of {outcome}; the figures are in the table below",
        title=outcome,
        subtitle=note,
        margin=(30, 16, 46, 58),
    )
    plot.add(svg.line(plot.x(axis.low), plot.y(axis.low), plot.x(axis.high), plot.y(axis.high), "reference"))
    labels, obstacles = [], []
    for x, y, p, name in sorted(known, key=lambda item: item[2].cohort is None):  # cohorts beneath
        at = (plot.x(100 * x), plot.y(100 * y))
        tip = (
            f"{name}\npredicted {percent(x, p.predicted_intervals[outcome])}\n"
            f"measured {percent(y, p.measured_intervals[outcome])}"
        )
        if p.cohort is not None:
            plot.add(svg.circle(*at, 4, "pale", tip))
            continue
        obstacles += _whiskers(plot, at, p.predicted_intervals[outcome], p.measured_intervals[outcome])
        plot.add(svg.circle(*at, 5.5, "candidate", tip))
        obstacles.append((at[0] - 7, at[1] - 7, at[0] + 7, at[1] + 7))
        labels.append(Label(*at, name))
    plot.write(svg.place_labels(labels, obstacles, plot.frame))
    return plot.render(identity)


def _whiskers(plot: Plot, at: tuple[float, float], across: Bounds | None, along: Bounds | None) -> list[Box]:
    x, y = at
    boxes: list[Box] = []
    if across:
        boxes.append((plot.x(100 * across[0]), y, plot.x(100 * across[1]), y))
    if along:
        boxes.append((x, plot.y(100 * along[1]), x, plot.y(100 * along[0])))
    for box in boxes:
        plot.add(svg.line(*box, "whisker strong"))
    return [(left - 1, top - 1, right + 1, bottom + 1) for left, top, right, bottom in boxes]


def lift_rows(experiment: Experiment, outcome: str) -> list[LiftRow]:
    """Every treatment arm, everybody first and then its cohorts."""
    rows = []
    for arm in experiment.treatments:
        for cohort in (None, *experiment.cohorts):
            cell = experiment.cell(arm, None, cohort)
            if cell is None:
                continue
            effect = cell.effects[outcome]
            rows.append(
                LiftRow(
                    name=arm if cohort is None else cohort,
                    lift=effect.lift,
                    interval=effect.interval,
                    tip=f"{arm}, {cohort or 'everybody'}\n{outcome} {percent(effect.lift, effect.interval)}\n"
                    f"{cell.users:,} users, {cell.requests:,} requests",
                    minor=cohort is not None,
                )
            )
    return rows


def limits(experiment: Experiment, outcome: str) -> list[float]:
    """The guardrail limits of an outcome."""
    found = [
        limit
        for guardrail in experiment.guardrails
        if guardrail.outcome == outcome
        for limit in (guardrail.minimum_lift, guardrail.maximum_lift)
        if limit is not None
    ]
    return list(dict.fromkeys(found))
