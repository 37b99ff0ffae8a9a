"""The one screen at the end of the demonstration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.rule import Rule
from rich.table import Table

from benchmarks.online import Measured
from ray_train.estimators import FloatArray
from triton_models.frontier import Frontier

QUANTILES = ("p50_ms", "p95_ms", "p99_ms")


def percent(value: float | None) -> str:
    """A fraction as signed percent."""
    return "-" if value is None else f"{100 * value:+.2f}"


def with_interval(lift: float | None, bounds: Sequence[float] | FloatArray | None) -> str:
    """A lift in percent and, on a second line, its interval."""
    if bounds is None:
        return f"{percent(lift)}\n"
    return f"{percent(lift)}\n[{percent(bounds[0])}, {percent(bounds[1])}]"


def operating_points(frontier: Frontier, measured: Measured) -> Table:
    """Predicted beside measured lifts of every candidate, and of its mean weights given to everybody."""
    surface = frontier.surface_object
    table = Table(
        title="Operating points: lift over production in %, 95 % intervals",
        caption=f"predicted: {frontier.estimator.name} on {frontier.window.rows:,} hold-out requests; "
        f"measured: the feed's own expectation on {measured.requests:,} new requests, choices by Triton; "
        "static: the same mean weights for everybody, measured",
    )
    table.add_column("operating point")
    for name in ("", "predicted", "measured", "static"):
        table.add_column(name, justify="right" if name else "left")
    for p, label in enumerate(frontier.candidates):
        point = frontier.candidate(label)
        weights = (
            f"{head} {weight:.0f}"
            for head, weight in zip(surface.controlled_heads, measured.mean_weights_PW[p], strict=True)
        )
        scalarization = ", ".join(f"{value:.2f}" for value in point.scalarization)
        about = [label.replace("_", " "), f"λ {scalarization}", "mean " + ", ".join(weights)]
        cells = [
            (
                f"{name}\n",
                with_interval(point.lifts[name], point.intervals[name]),
                with_interval(float(measured.lift_PR[p, r]), measured.bounds_PR2[p, r]),
                with_interval(float(measured.static_lift_SR[p, r]), measured.static_bounds_SR2[p, r]),
            )
            for r, name in enumerate(surface.objectives)
        ]
        columns = ["\n".join(column) for column in zip(*cells, strict=True)]
        table.add_row("\n".join(about), *columns, end_section=True)
    return table


def latency(load: Mapping[str, Any]) -> Table:
    """Latency of ranking with the control on and off, from the same Locust run."""
    table = Table(title="Latency of /v1/rank in ms, control on and off in turn in one Locust run")
    for column in ("", "requests", "p50", "p95", "p99"):
        table.add_column(column, justify="left" if not column else "right")
    for key, label in (("control_on", "control on"), ("control_off", "control off")):
        row = load[key]
        table.add_row(label, f"{row['requests']:,}", *(f"{row[q]:.1f}" for q in QUANTILES))
    table.add_row(
        "on minus off, 95 % interval", "", *(_difference(load["on_minus_off_ms"][q]) for q in QUANTILES)
    )
    return table


def _difference(entry: Mapping[str, Any]) -> str:
    interval = entry["interval"]
    shown = f" [{interval[0]:+.1f}, {interval[1]:+.1f}]" if interval else ""
    return f"{entry['difference']:+.1f}{shown}"


def print_screen(
    console: Console, *, frontier: Frontier, measured: Measured, load: Mapping[str, Any], root: Path
) -> None:
    """Print the whole screen."""
    console.print()
    console.print(Rule("[bold]What came of it[/]"))
    console.print(operating_points(frontier, measured))
    console.print(latency(load))
    fallbacks = ", ".join(f"{reason} {count}" for reason, count in load["fallbacks"].items()) or "none"
    console.print(
        f"value network chose {load['choices']:,} times, {load['distinct_actions']} different weight vectors"
    )
    console.print(f"requests {load['requests']:,}, failures {load['failures']}, fallbacks: {fallbacks}")
    console.print("[bold]Look at[/]")
    for what, where in (
        ("frontier", root / "run" / "frontier.html"),
        ("learning curves", root / "run" / "learning.html"),
        ("load", root / "load" / "report.html"),
        ("all figures", root / "demo.json"),
    ):
        console.print(f"  {what:16} {where}", highlight=False, soft_wrap=True)
