"""The tables, as lines of Markdown; the page shows the same lines."""

from __future__ import annotations

import math
from typing import Any

from benchmarks.paper import published
from benchmarks.paper.parts import Part
from benchmarks.paper.points import EVERYBODY
from benchmarks.paper.settings import OPERATING_POINTS
from benchmarks.paper.summary import Mean, Summary

Lines = list[str]
SET_TITLES = {
    "sweep": "the whole sweep",
    "near": "within 0.1 of the balanced α",
    "tested": "the three operating points",
}
SIDE_TITLES = {"offline": "offline", "online": "A/B", "truth": "truth"}


def lift(value: float | None, interval: Any = None) -> str:
    """``+1.30 [+0.20, +2.40]`` in percent; a dash where nothing is known."""
    if value is None or not math.isfinite(value):
        return "–"
    shown = f"{100 * value:+.2f}"
    if interval and all(bound is not None and math.isfinite(bound) for bound in interval):
        # A narrow column breaks before the bracket, not inside it.
        shown += f" [{100 * interval[0]:+.2f},\u00a0{100 * interval[1]:+.2f}]"
    return shown.replace("-", "−")


def over_worlds(mean: Mean) -> str:
    """A mean lift with its interval over worlds."""
    return lift(mean.value, mean.interval)


def markdown(head: list[str], rows: list[list[str]]) -> Lines:
    """A table's lines."""
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def _sessions(summary: Summary) -> str:
    return summary.outcomes[len(summary.objectives)]


def _title(outcome: str, side: str) -> str:
    """Heading of a column; the paper says "sessions" for successful sessions."""
    return f"{outcome.replace('successful_session', 'sessions')}, {SIDE_TITLES[side]}"


def _sides(outcome: str, summary: Summary) -> list[str]:
    """Offline is for objectives: the paper has no offline figure of its metric."""
    return list(SIDE_TITLES) if outcome in summary.objectives else ["online", "truth"]


def table_1(part: Part) -> Lines:
    """Operating points of one world, each lift with its interval by user."""
    outcomes = part["outcomes"][: len(part["objectives"]) + 1]
    head = ["operating point", "α"]
    head += [_title(name, side) for name in part["objectives"] for side in SIDE_TITLES]
    head += [_title(outcomes[-1], side) for side in ("online", "truth")]
    rows = []
    for label in OPERATING_POINTS:
        p = part["labels"][label]
        row = [label, f"{part['alphas'][p]:.2f}"]
        for r, name in enumerate(outcomes):
            for side in SIDE_TITLES if name in part["objectives"] else ("online", "truth"):
                found = part["groups"][EVERYBODY][side]
                row.append(lift(found["lift"][p][r], found["interval"][p][r]))
        rows.append(row)
    return markdown(head, rows)


def table_1_means(summary: Summary) -> Lines:
    """Means over worlds beside the paper's row."""
    outcomes = (*summary.objectives, _sessions(summary))
    head = ["operating point", "whose", "α"]
    head += [_title(name, side) for name in outcomes for side in _sides(name, summary)]
    rows = []
    for label in OPERATING_POINTS:
        ours = [label, "ours", f"{summary.alpha[label].value:.2f}"]
        ours += [
            over_worlds(summary.lifts[EVERYBODY, label, side, name])
            for name in outcomes
            for side in _sides(name, summary)
        ]
        paper = published.TABLE_1[label]
        pairs = {"repin": paper.repin, "p2p": paper.p2p, outcomes[-1]: (paper.sessions, None)}
        theirs = ["", "paper", f"{paper.alpha:.2f}"]
        for name in outcomes:
            online, offline = pairs.get(name, (None, None))
            cells = {"offline": lift(offline), "online": lift(online), "truth": "–"}
            theirs += [cells[side] for side in _sides(name, summary)]
        rows += [ours, theirs]
    return markdown(head, rows)


def correlations(summary: Summary, points: list[Part]) -> Lines:
    """r per objective over three sets of points, and the offline error."""
    head = ["points", "number", "objective", "r, offline and A/B: mean over worlds", "worlds"]
    head += ["r, offline and truth", "offline error, points of lift", "paper's r"]
    rows = []
    for name, title in SET_TITLES.items():
        for objective in summary.objectives:
            online = summary.correlation[name, "online", objective]
            paper = (
                f"{published.PEARSON[objective]:.3f}"
                if name == "tested" and objective in published.PEARSON
                else "–"
            )
            counts = [part["correlation"][name]["points"] for part in points]
            number = " to ".join(str(count) for count in sorted({min(counts), max(counts)}))
            rows.append(
                [
                    title,
                    number,
                    objective,
                    _r(online),
                    ", ".join(f"{r:.4f}" for r in online.worlds),
                    _r(summary.correlation[name, "truth", objective]),
                    f"{100 * summary.error[name, objective].value:.2f}",
                    paper,
                ]
            )
    return markdown(head, rows)


def _r(mean: Mean) -> str:
    shown = f"{mean.value:.4f}".replace("-", "−")
    return (
        shown
        if mean.interval is None
        else f"{shown} [{mean.interval[0]:.4f},\u00a0{mean.interval[1]:.4f}]".replace("-", "−")
    )


def table_2(summary: Summary) -> Lines:
    """Lifts by cohort, means over worlds."""
    head = ["cohort", "operating point"]
    head += [f"{name}, {SIDE_TITLES[side]}" for name in summary.objectives for side in SIDE_TITLES]
    rows = [
        [
            cohort.upper() if label == OPERATING_POINTS[0] else "",
            label,
            *(
                over_worlds(summary.lifts[cohort, label, side, name])
                for name in summary.objectives
                for side in SIDE_TITLES
            ),
        ]
        for cohort in summary.cohorts
        for label in OPERATING_POINTS
    ]
    return markdown(head, rows)


def table_3(summary: Summary) -> Lines:
    """The personalized policy and its average weights given to everybody, means over worlds."""
    outcomes = (*summary.objectives, _sessions(summary))
    heads = list(dict.fromkeys(head for _, head in summary.static_weights))
    head = ["operating point", "policy", f"mean weights, {' / '.join(heads)}"]
    head += [_title(name, side) for name in outcomes for side in ("online", "truth")]
    rows = []
    for label in OPERATING_POINTS:
        weights = " / ".join(f"{summary.static_weights[label, name].value:.1f}" for name in heads)
        personalized = [
            over_worlds(summary.lifts[EVERYBODY, label, side, name])
            for name in outcomes
            for side in ("online", "truth")
        ]
        static = [
            over_worlds(summary.static[label, side, name])
            for name in outcomes
            for side in ("online", "truth")
        ]
        gain = [
            cell
            for name in outcomes
            for cell in ("", over_worlds(summary.static[label, "personalized_over_static", name]))
        ]
        rows.append([label, "personalized", weights, *personalized])
        rows.append(["", "the same for everybody", weights, *static])
        rows.append(["", "personalized over static", "", *gain])
    for who, figures in (("personalized", published.PERSONALIZED), ("static", published.MATCHED_STATIC)):
        cells = [cell for value in figures for cell in (lift(value), "–")]
        rows.append(["paper", who, "– / 11.83", *cells])
    return markdown(head, rows)


def ablation(summary: Summary) -> Lines:
    """Captured share by feature group."""
    rows = []
    for group, mean in summary.ablation.items():
        spread = "–" if mean.interval is None else f"[{_share(mean.interval[0])}, {_share(mean.interval[1])}]"
        rows.append([group, _share(mean.value), spread, ", ".join(_share(value) for value in mean.worlds)])
    return markdown(["features in", "captured", "interval", "worlds"], rows)


def _share(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")
