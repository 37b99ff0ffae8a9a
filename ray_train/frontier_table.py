"""The candidates of a frontier on a terminal."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ray_train.frontier_charts import labels_by_point, scalarization_text
from ray_train.verdict import verdict
from triton_models.frontier import Bounds, Estimate, Frontier


def print_candidates(console: Console, frontier: Frontier) -> None:
    """Every candidate with lifts and intervals, its matched static weights below it, and the verdict."""
    surface = frontier.surface_object
    confidence = f"{100 * frontier.estimator.confidence:g} %"
    table = Table(
        title=f"Lifts against production, {confidence} bands for all points at once",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("candidate")
    for name in surface.objectives:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("hits", justify="right", no_wrap=True)
    table.add_column("mean weights", no_wrap=True)
    for index, labels in labels_by_point(frontier).items():
        point = frontier.points[index]
        name = f"[bold]{labels}[/]\n{scalarization_text(point)}"
        table.add_row(name, *_cells(frontier, point))
        static = frontier.candidates[labels.split(", ")[0]].matched_static
        if static is not None:
            table.add_row("  matched static", *_cells(frontier, static), style="dim")
    console.print(table)
    between = frontier.points_of(None, extrapolated=True)
    if between:
        ahead = sum(not point.dominated for point in between)
        console.print(
            f"extrapolated: {len(between)} points choose weights between those explored, {ahead} of them "
            "would be on the frontier; never candidates, and not what the served model chooses",
            soft_wrap=True,
            highlight=False,
        )
    console.print(verdict(frontier).text, soft_wrap=True, highlight=False)


def _cells(frontier: Frontier, estimate: Estimate) -> list[str]:
    surface = frontier.surface_object
    return [
        *(format_lift(estimate.lifts[name], estimate.bands()[name]) for name in surface.objectives),
        f"{estimate.hits:,}",
        "\n".join(f"{head} {estimate.mean_weights[head]:.4g}" for head in surface.controlled_heads),
    ]


def format_lift(lift: float | None, bounds: Bounds | None) -> str:
    """``+1.30 %`` above ``[+0.20, +2.40]``; a dash where the logs cannot tell."""
    if lift is None:
        return "–"
    text = f"{100 * lift:+.2f} %"
    return text if bounds is None else f"{text}\n\\[{100 * bounds[0]:+.2f}, {100 * bounds[1]:+.2f}]"
