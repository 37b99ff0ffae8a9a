"""Pictures of operating points: frontiers, offline against online, cohorts. Lifts are in percent."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from benchmarks.paper.correlation import pearson
from benchmarks.paper.parts import Part
from benchmarks.paper.points import EVERYBODY
from benchmarks.paper.settings import OPERATING_POINTS
from ray_train import svg
from ray_train.estimators import FloatArray
from ray_train.svg import Axis, Label, Plot

Spots = list[tuple[float, float]]
SIDES = (("offline estimate", "offline", "c0"), ("A/B test", "online", "c2"), ("truth", "truth", "c1"))


def percents(part: Part, group: str, side: str) -> FloatArray:
    """Lifts of every point in percent, [P, R]; NaN where nothing is known."""
    return 100.0 * np.array(part["groups"][group][side]["lift"], dtype=np.float64)


def frontier(part: Part, identity: str) -> str:
    """Offline, A/B and true lifts of one world's sweep, with the operating points and their static twins."""
    one, two = part["objectives"]
    every = {side: percents(part, EVERYBODY, side)[:, :2] for _, side, _ in SIDES}
    points = np.concatenate(list(every.values()))
    plot = Plot(
        820,
        520,
        Axis.around([0.0, *points[:, 0]], title=f"{one} lift, %", signed=True),
        Axis.around([0.0, *points[:, 1]], title=f"{two} lift, %", signed=True),
        label=f"Lift of {two} against lift of {one} along α: offline, A/B and truth",
        title=f"seed {part['seed']}: one network, α from {part['alphas'][0]:.2f} to {part['alphas'][-1]:.2f}",
        margin=(30, 16, 46, 58),
        legend=[(name, kind) for name, _, kind in SIDES],
    )
    for name, side, kind in SIDES:
        spots = [(plot.x(x), plot.y(y)) for x, y in every[side]]
        if side != "online":
            plot.add(svg.path(spots, f"curve {kind}"))
        for p, spot in enumerate(spots):
            tip = f"{name}, α = {part['alphas'][p]:.2f}\n{one} {every[side][p, 0]:+.2f} %"
            tip += f"\n{two} {every[side][p, 1]:+.2f} %"
            plot.add(svg.circle(*spot, 3, f"dot {kind}", tip))
    production = (plot.x(0), plot.y(0))
    plot.add(svg.circle(*production, 5, "production", "production"))
    labels = [Label(*production, "production", "label quiet")]
    obstacles = [(plot.x(x) - 4, plot.y(y) - 4, plot.x(x) + 4, plot.y(y) + 4) for x, y in points]
    for name in OPERATING_POINTS:
        x, y = every["truth"][part["labels"][name]]
        plot.add(svg.circle(plot.x(x), plot.y(y), 6.5, "candidate", f"{name}, truth"))
        a, b = (100 * value for value in part["matched_static"][name]["truth"]["lift"][:2])
        plot.add(svg.line(plot.x(x), plot.y(y), plot.x(a), plot.y(b), "tie"))
        plot.add(svg.diamond(plot.x(a), plot.y(b), 5, "static", f"static weights matched to {name}, truth"))
        labels.append(Label(plot.x(x), plot.y(y), name))
    plot.write(svg.place_labels(labels, obstacles, plot.frame))
    return plot.render(identity)


def offline_online(parts: Sequence[Part], m: int, identity: str) -> str:
    """A/B lifts against offline ones, all points of all worlds, a colour a world."""
    name = parts[0]["objectives"][m]
    off = [percents(part, EVERYBODY, "offline")[:, m] for part in parts]
    on = [percents(part, EVERYBODY, "online")[:, m] for part in parts]
    both = Axis.around(np.concatenate([*off, *on]).tolist(), title="", signed=True)
    kinds = [f"c{number % 6}" for number in range(len(parts))]
    plot = Plot(
        430,
        440,
        Axis(both.low, both.high, f"{name} lift offline, %", signed=True),
        Axis(both.low, both.high, f"{name} lift in the A/B test, %", signed=True),
        label=f"{name}: lifts in A/B tests against offline estimates",
        title=f"{name}",
        margin=(30, 16, 46, 58),
        legend=[
            (f"seed {part['seed']}: r {pearson(off[number], on[number]):.4f}", kinds[number])
            for number, part in enumerate(parts)
        ],
    )
    plot.add(svg.line(plot.x(both.low), plot.y(both.low), plot.x(both.high), plot.y(both.high), "reference"))
    for number, part in enumerate(parts):
        for x, y, alpha in zip(off[number], on[number], part["alphas"], strict=True):
            if np.isfinite(x) and np.isfinite(y):
                tip = f"seed {part['seed']}, α = {alpha:.2f}: offline {x:+.2f} %, A/B {y:+.2f} %"
                plot.add(svg.circle(plot.x(x), plot.y(y), 3, f"dot {kinds[number]}", tip))
    return plot.render(identity)


def cohort_frontiers(part: Part, identity: str) -> list[str]:
    """One panel a cohort on common axes: the offline estimate and the truth."""
    one, two = part["objectives"]
    cohorts = [name for name in part["groups"] if name != EVERYBODY]
    true = {name: percents(part, name, "truth")[:, :2] for name in cohorts}
    off = {name: percents(part, name, "offline")[:, :2] for name in cohorts}
    x_axis, y_axis = (
        _axis(np.concatenate([found[:, i] for found in true.values()]), off.values(), i, name)
        for i, name in enumerate((one, two))
    )
    pictures = []
    for cohort in cohorts:
        share = part["groups"][cohort]["share"]
        plot = Plot(
            430,
            356,
            x_axis,
            y_axis,
            label=f"Frontier of cohort {cohort}: offline and truth",
            title=f"{cohort.upper()} ({100 * share:.0f} % of the requests)",
            margin=(30, 16, 46, 58),
            legend=[("offline estimate", "c0"), ("truth", "c1")],
        )
        for found, kind in ((off[cohort], "c0"), (true[cohort], "c1")):
            _trace(plot, found, kind, part["alphas"], cohort)
        plot.add(svg.circle(plot.x(0), plot.y(0), 5, "production", "production"))
        pictures.append(plot.render(f"{identity}{cohort}"))
    return pictures


def _axis(core: FloatArray, off: Iterable[FloatArray], i: int, name: str) -> Axis:
    """All true lifts, and the offline ones as far as they are not too far out."""
    room = 0.15 * float(np.ptp(core))
    extra = np.concatenate([found[:, i] for found in off])
    extra = np.clip(extra[np.isfinite(extra)], core.min() - room, core.max() + room)
    return Axis.around([0.0, *core], extra.tolist(), title=f"{name} lift, %", signed=True)


def _trace(plot: Plot, lift_P2: FloatArray, kind: str, alphas: Sequence[float], name: str) -> None:
    known = np.isfinite(lift_P2).all(axis=1)
    spots: Spots = [(plot.x(x), plot.y(y)) for x, y in lift_P2[known]]
    if kind != "c0":
        plot.add(svg.path(spots, f"curve {kind}"))
    for spot, alpha in zip(spots, np.asarray(alphas)[known], strict=True):
        plot.add(svg.circle(*spot, 2.6, f"dot {kind}", f"{name}, α = {alpha:.2f}"))


def cohort_responses(part: Part, m: int, identity: str) -> str:
    """True lift of one objective against α, a curve a cohort, with the A/B tests' dots."""
    name = part["objectives"][m]
    cohorts = [group for group in part["groups"] if group != EVERYBODY]
    true = {group: percents(part, group, "truth")[:, m] for group in cohorts}
    tested = {group: percents(part, group, "online")[:, m] for group in cohorts}
    alphas = part["alphas"]
    pad = 0.02 * (alphas[-1] - alphas[0])
    values: Any = np.concatenate(list(true.values()))
    plot = Plot(
        430,
        316,
        Axis(alphas[0] - pad, alphas[-1] + pad, "α"),
        Axis.around(
            [0.0, *values],
            np.concatenate(list(tested.values())).tolist(),
            title=f"{name} lift, %",
            signed=True,
        ),
        label=f"{name} lift against α by cohort",
        title=f"{name}: truth (curves) and A/B tests (dots)",
        margin=(30, 16, 46, 58),
        legend=[(group.upper(), f"c{i}") for i, group in enumerate(cohorts)],
    )
    for number, group in enumerate(cohorts):
        kind = f"c{number}"
        plot.add(
            svg.path(
                [(plot.x(a), plot.y(v)) for a, v in zip(alphas, true[group], strict=True)], f"curve {kind}"
            )
        )
        for alpha, value in zip(alphas, tested[group], strict=True):
            plot.add(
                svg.circle(
                    plot.x(alpha),
                    plot.y(value),
                    2.4,
                    f"dot {kind}",
                    f"{group}, α = {alpha:.2f}: {value:+.2f} %",
                )
            )
    return plot.render(identity)
