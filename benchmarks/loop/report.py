"""The end of a turn: predicted, measured and true lifts side by side."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from benchmarks.loop.settings import TREATMENT
from benchmarks.loop.turn import Turn
from triton_models.frontier import Point

WORTH_SAYING = 0.01
"""Share of fallbacks in the arm from which on they are said to have diluted its lifts."""

Shown = tuple[float | None, list[float] | tuple[float, float] | None]


def rows(turn: Turn) -> dict[str, dict[str, Shown]]:
    """Outcome → predicted, measured, true: lift over production and interval."""
    point = turn.frontier.candidate(turn.choice.tested)
    cell = _cell(turn.experiment)
    found: dict[str, dict[str, Shown]] = {}
    for name, (lift, low, high) in turn.truth.items():
        effect = cell.get("effects", {}).get(name, {})
        interval = effect.get("interval")
        found[name] = {
            "predicted": _predicted(point, name),
            "measured": (effect.get("lift"), _bounds(interval)),
            "true": (lift, (low, high)),
        }
    return found


def _predicted(point: Point, name: str) -> Shown:
    """What the sweep said of an objective or a metric."""
    if name in point.lifts:
        return point.lifts[name], _bounds(point.intervals.get(name))
    metric = point.metrics.get(name)
    return (None, None) if metric is None else (metric.lift, _bounds(metric.interval))


def _cell(experiment: dict[str, Any]) -> dict[str, Any]:
    """The treatment arm over everybody and all versions."""
    cells = [
        cell for cell in experiment.get("cells", []) if cell["arm"] == TREATMENT and cell["cohort"] is None
    ]
    whole = [cell for cell in cells if cell["policy_version"] is None]
    return dict((whole or cells or [{}])[0])


def _bounds(interval: Any) -> tuple[float, float] | None:
    if interval is None:
        return None
    if isinstance(interval, dict):
        return float(interval["low"]), float(interval["high"])
    return float(interval[0]), float(interval[1])


def as_json(turn: Turn) -> dict[str, Any]:
    """Plain data."""
    settings = asdict(turn.settings) | {"out": str(turn.settings.out)}
    lifts = {
        name: {
            kind: {"lift": lift, "interval": None if bounds is None else list(bounds)}
            for kind, (lift, bounds) in kinds.items()
        }
        for name, kinds in rows(turn).items()
    }
    return {
        "version": 1,
        "settings": settings,
        "explored": turn.explored.as_json(),
        "joined_rows": turn.joined_rows,
        "operating_point": turn.choice.tested,
        "recommended": turn.choice.recommended,
        "why": turn.choice.why,
        "scalarization": list(turn.scalarization),
        "tested": turn.tested.as_json(),
        "lifts": lifts,
    }


def as_markdown(turn: Turn) -> str:
    """The table, for people and for RESULTS.md."""
    s = turn.settings
    lines = [
        f"{turn.explored.requests:,} requests through /v1/{s.route} at exploration share {s.exploration:g}, "
        f"{turn.joined_rows:,} joined rows, {s.epochs} epochs; then {turn.tested.requests:,} requests of an "
        f"A/B test of {turn.choice.tested} (λ {', '.join(f'{v:.2f}' for v in turn.scalarization)}).",
        f"**Recommended: {turn.choice.recommended}** ({turn.choice.why}).",
        "",
        "| lift over production, % | predicted (sweep) | measured (experiment) | true (the feed) |",
        "|---|---|---|---|",
    ]
    for name, kinds in rows(turn).items():
        cells = [_shown(*kinds[kind]) for kind in ("predicted", "measured", "true")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *_notes(turn)]) + "\n"


def _notes(turn: Turn) -> list[str]:
    notes = []
    share = _cell(turn.experiment).get("fallback_share") or 0.0
    if share > WORTH_SAYING:
        notes.append(
            f"- {100 * share:.1f} % of the arm's requests got production weights as a fallback: measured and "
            "true lifts are smaller than the policy's own by about that share, the predicted ones are not."
        )
    for name, kinds in rows(turn).items():
        bounds = kinds["measured"][1]
        if bounds is not None and bounds[0] <= 0 <= bounds[1]:
            notes.append(
                f"- {name}: the test cannot tell the measured lift from nothing; sampling noise dominates."
            )
    return notes


def _shown(lift: float | None, bounds: Any) -> str:
    if lift is None:
        return "-"
    interval = "" if bounds is None else f" [{100 * bounds[0]:+.2f}, {100 * bounds[1]:+.2f}]"
    return f"{100 * lift:+.2f}{interval}"
