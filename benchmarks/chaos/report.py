"""What came of the faults, as plain data and as a Markdown table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from benchmarks.chaos.episodes import Outcome, Window
from benchmarks.chaos.measure import Measured, StageResult
from benchmarks.chaos.verdicts import Verdict


def all_verdicts(measured: Measured) -> list[Verdict]:
    """Of every stage; none of a quick run."""
    return [] if measured.settings.quick else [v for stage in measured.stages for v in stage.verdicts]


def as_json(measured: Measured) -> dict[str, Any]:
    """Everything but the single requests."""
    return {
        "version": 1,
        "machine": dict(measured.machine),
        "settings": asdict(measured.settings),
        "network": measured.network,
        "stages": [_stage_json(stage) for stage in measured.stages],
        "stages_that_could_not_be_run": dict(measured.failed),
        "verdicts": [{"line": v.line(), "hit": v.hit} for v in all_verdicts(measured)],
    }


def _stage_json(stage: StageResult) -> dict[str, Any]:
    return {
        "name": stage.name,
        "title": stage.title,
        "rate_per_s": round(stage.rate_per_s, 1),
        "saturation": {str(n): round(rate, 1) for n, rate in stage.saturation.items()},
        "requests": len(stage.records),
        "calm": _rounded(asdict(stage.calm)),
        "outcomes": [_rounded(asdict(outcome)) for outcome in stage.outcomes],
        "could_not_be_put_in": dict(stage.broken),
        "notes": list(stage.notes),
    }


def _rounded(data: Any) -> Any:
    if isinstance(data, Mapping):
        return {key: _rounded(value) for key, value in data.items()}
    return round(data, 4) if isinstance(data, float) else data


def as_markdown(measured: Measured) -> str:
    """The table, for people and for RESULTS.md."""
    lines = [about(measured), ""]
    for stage in measured.stages:
        lines += [f"### {stage.name}: {stage.title}", "", stage_note(stage), "", *stage_table(stage), ""]
        lines += [f"- {name} could not be put in: {why}" for name, why in stage.broken.items()]
        lines += [f"- {note}" for note in stage.notes]
    lines += [f"- stage {name} could not be run: {why}" for name, why in measured.failed.items()]
    lines += [f"- {verdict.line()}" for verdict in all_verdicts(measured)]
    return "\n".join(lines).rstrip() + "\n"


def about(measured: Measured) -> str:
    """Machine, command and conditions in one paragraph."""
    machine, s = measured.machine, measured.settings
    load = float(str(machine.get("load_average", 0.0)))
    busy = f"; BUSY, load average {load:g} before it began" if load > 1.0 else ""
    quick = " A quick run: it tests the path, its figures are none." if s.quick else ""
    return (
        f"{machine.get('time')}: {machine.get('cores')} cores of {machine.get('cpu')}{busy}; "
        f"`{machine.get('command')}`; value network: {measured.network}; open loop, Poisson arrivals, "
        f"latencies from when a request was due; budget {s.budget_ms:g} ms; {s.control_s:g} s without a "
        f"fault before each, {s.fault_s:g} s of it, {s.after_s:g} s after it.{quick}"
    )


def stage_note(stage: StageResult) -> str:
    """Load and fault-free latency of a stage."""
    calm = stage.calm
    return (
        f"{stage.rate_per_s:.0f} requests/s, {len(stage.records):,} requests; without faults p50 "
        f"{_ms(calm.p50_ms)}, p99 {_ms(calm.p99_ms)} ms, {_share(calm.chosen)} chosen by the value network."
    )


def stage_table(stage: StageResult) -> list[str]:
    """One row for each fault."""
    lines = [
        "| fault | requests | failed | 503, ranker | p50 / p99 before | during | breaker open | after "
        "| detected | back | reasons |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    return lines + [_row(outcome) for outcome in stage.outcomes]


def _row(outcome: Outcome) -> str:
    episode = outcome.episode
    reasons = ", ".join(f"{name} {count}" for name, count in outcome.reasons.items()) or "none"
    retried = f", {outcome.retried} asked twice" if outcome.retried else ""
    problems = [f"{name} {count}" for name, count in outcome.problems.items()]
    reasons += f"; {', '.join(problems[:4])}" if problems else ""
    cells = [
        f"{episode.title}, {outcome.episodes} times" if outcome.episodes > 1 else episode.title,
        f"{outcome.requests:,}{retried}",
        str(outcome.failed),
        str(outcome.refused),
        *(_window(w) for w in (outcome.before, outcome.during, outcome.open, outcome.after)),
        _seconds(outcome.detected_s),
        _seconds(outcome.back_s) if episode.concerns == "value_network" else "-",
        reasons,
    ]
    return f"| {' | '.join(cells)} |"


def _window(window: Window) -> str:
    return "-" if window.p50_ms is None else f"{_ms(window.p50_ms)} / {_ms(window.p99_ms)}"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} s"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
