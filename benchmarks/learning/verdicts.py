"""What the cells say about the targets L1 and L2 (design table), and about the gate. One line each.

* L1: the default learner's captured share, and how far it is above the paper's network, paired by seed.
* L2: rows with which the default learner reaches what the paper's network reaches with 1,000,000; between two
  sizes the mean over seeds is taken as straight over the logarithm of the rows.
* The gate: which runs it lets through, and what those policies are worth in truth.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np

from benchmarks.learning.cells import ALPHAS
from benchmarks.learning.summaries import (
    Cells,
    Groups,
    against_production,
    against_static,
    by_seed,
    mean_and_interval,
    paired_differences,
    passed,
    spread,
)

PAPER = "paper"
L1_TARGETS = {200_000: (0.20, 0.12), 1_000_000: (0.40, 0.10)}
"""Rows → captured share, and how much of it above the paper's network."""
L2_REFERENCE_ROWS, L2_TARGET_ROWS = 1_000_000, 350_000
WANTED_SEEDS = 5


def target_lines(groups: Groups, default: str) -> list[str]:
    """L1 and L2 of one feed."""
    lines = [_l1(groups, default, rows, *targets) for rows, targets in L1_TARGETS.items()]
    return [*lines, _never_below(groups, default), _l2(groups, default)]


def _said(value: float, target: float) -> str:
    return "reached" if value >= target else "MISSED"


def _seeds(count: int) -> str:
    few = f", of {WANTED_SEEDS} wanted" if count < WANTED_SEEDS else ""
    return f"{count} seed{'s' if count > 1 else ''}{few}"


def _l1(groups: Groups, default: str, rows: int, share: float, margin: float) -> str:
    ours = groups.get((rows, default), [])
    if not ours:
        return f"L1, {rows:,} rows: not measured for {default}."
    mean, _ = mean_and_interval([cell["mean"] for cell in ours])
    text = (
        f"L1, {rows:,} rows: {default} captures {spread([cell['mean'] for cell in ours], 3)} "
        f"({_seeds(len(ours))}; target ≥ {share:.2f}: {_said(mean, share)})"
    )
    ahead = paired_differences(ours, groups.get((rows, PAPER), []))
    if not ahead:
        return f"{text}; {PAPER} not measured."
    lead, _ = mean_and_interval(ahead)
    return (
        f"{text}; above {PAPER} by {spread(ahead, 3)}, paired ({_seeds(len(ahead))}; "
        f"target ≥ {margin:.2f}: {_said(lead, margin)})."
    )


def _never_below(groups: Groups, default: str) -> str:
    """L1's last part: sizes, and α within them, whose whole interval is below the best static vector."""
    sizes = sorted(rows for rows, learner in groups if learner == default and rows >= min(L1_TARGETS))
    measured = [rows for rows in sizes if len(groups[rows, default]) > 1]
    if not measured:
        return f"L1, never below the best static vector: not measured for {default} over several seeds."
    below, alphas = [], []
    for rows in measured:
        cells = groups[rows, default]
        below += [f"{rows:,}"] if _is_below([cell["mean"] for cell in cells]) else []
        alphas += [
            f"α {alpha} at {rows:,}"
            for p, alpha in enumerate(ALPHAS)
            if _is_below([cell["captured"][p] for cell in cells])
        ]
    said = f"MISSED at {', '.join(below)} rows" if below else "reached"
    single = f"single α below: {', '.join(alphas)}" if alphas else "no single α below"
    what = f"L1, never below the best static vector beyond noise, {measured[0]:,} rows and more"
    return f"{what}: {said}; {single}."


def _is_below(values: list[float]) -> bool:
    mean, half = mean_and_interval(values)
    return mean + half < 0


def _l2(groups: Groups, default: str) -> str:
    paper = groups.get((L2_REFERENCE_ROWS, PAPER), [])
    if not paper:
        return f"L2: not measured, there is no {PAPER} at {L2_REFERENCE_ROWS:,} rows."
    wanted = float(np.mean([cell["mean"] for cell in paper]))
    curve = learning_curve(groups, default, set(by_seed(paper)))
    if not curve:
        return f"L2: not measured for {default} on the seeds of {PAPER} at {L2_REFERENCE_ROWS:,} rows."
    what = f"L2: {PAPER} reaches {wanted:.3f} with {L2_REFERENCE_ROWS:,} rows ({_seeds(len(paper))})"
    rows, bound = rows_to_reach(curve, wanted)
    if rows is None:
        return f"{what}; {default} has not reached it with {max(curve):,}: MISSED."
    said = "reached" if rows <= L2_TARGET_ROWS else "MISSED"
    about = f"at most {rows:,.0f}, the fewest measured" if bound else f"about {rows:,.0f}"
    return f"{what}; {default} needs {about} (target ≤ {L2_TARGET_ROWS:,}: {said})."


def learning_curve(groups: Groups, learner: str, seeds: set[int]) -> dict[int, float]:
    """Rows → mean captured share over exactly these seeds; sizes that lack one of them are left out."""
    curve = {}
    for (rows, name), cells in sorted(groups.items()):
        found = by_seed(cells)
        if name == learner and seeds <= set(found):
            curve[rows] = float(np.mean([found[seed]["mean"] for seed in seeds]))
    return curve


def rows_to_reach(curve: dict[int, float], wanted: float) -> tuple[float | None, bool]:
    """The fewest rows with which a curve reaches a value, and whether that is only an upper bound."""
    points = sorted(curve.items())
    if points[0][1] >= wanted:
        return float(points[0][0]), True
    for (rows, low), (more, high) in pairwise(points):
        if high >= wanted:
            part = (wanted - low) / (high - low)
            return math.exp(math.log(rows) + part * (math.log(more) - math.log(rows))), False
    return None, False


def gate_lines(groups: Groups) -> list[str]:
    """How often the gate let a policy through that is worse in truth, per learner and size."""
    lines = []
    for (rows, learner), cells in sorted(groups.items()):
        judged = [cell for cell in cells if cell["verdict"]]
        if judged:
            through = [cell for cell in judged if passed(cell)]
            worse = {
                "the best static vector": sum(against_static(cell) < 0 for cell in through),
                "production": sum(against_production(cell) < 0 for cell in through),
            }
            below = ", ".join(f"{count} below {what}" for what, count in worse.items())
            lines.append(
                f"Gate, {learner}, {rows:,} rows: {len(through)} of {len(judged)} pass; of those, in truth, "
                f"{below}."
            )
    return lines


def gate_table(groups: Groups) -> list[str]:
    """One row for each judged run: what the gate said, and what the policy is worth in truth."""
    judged: Cells = [cell for cells in groups.values() for cell in cells if cell["verdict"]]
    if not judged:
        return []
    lines = [
        "| rows | learner | seed | the gate says | exported | truth: against static | against production |",
        "|---|---|---|---|---|---|---|",
    ]
    for cell in sorted(judged, key=lambda cell: (cell["rows"], cell["learner"], cell["seed"])):
        lines.append(
            f"| {cell['rows']:,} | {cell['learner']} | {cell['seed']} | {cell['verdict']['level']} "
            f"| {'yes' if passed(cell) else 'no, needs --force'} "
            f"| {against_static(cell):+.2%} | {against_production(cell):+.2%} |"
        )
    return lines
