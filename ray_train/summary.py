"""What ``validate`` shows: the log on one screen."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ray_train.checks import LogReport
from ray_train.logs import LogFiles
from ray_train.sample_ratio import SampleRatio, sample_ratio
from triton_models.surface import Surface

SHOWN_ACTIONS = 5
"""Deviating actions that a warning names."""


def print_summary(console: Console, surface: Surface, files: LogFiles, report: LogReport) -> None:
    """Rows, window, rates, cohorts, unknown values, bad rows by reason, sample ratio."""
    title = f"{escape(files.source)} against surface {surface.name}"
    table = Table(title=title, show_header=False)
    for name, value in _lines(surface, files, report):
        table.add_row(name, escape(value))  # a cohort may be called [/b]
    console.print(table)
    if report.bad:
        bad = Table("bad rows", "rows", title=f"{report.bad:,} of {report.rows:,} rows are bad")
        for name, count in report.by_reason().items():
            bad.add_row(name, f"{count:,}")
        console.print(bad)
        for example in report.examples:
            console.print(f"  e.g. {example}", soft_wrap=True, markup=False, highlight=False)
    if report.good:
        console.print(
            ratio_line(surface, sample_ratio(report.totals)), soft_wrap=True, markup=False, highlight=False
        )


def _lines(surface: Surface, files: LogFiles, report: LogReport) -> list[tuple[str, str]]:
    totals, good = report.totals, max(int(report.totals.actions.sum()), 1)
    days = sorted(totals.days)
    counts = [totals.days[day] for day in days]
    lines = [("files, rows", f"{len(files.paths):,} files, {report.rows:,} rows, {report.good:,} good")]
    if days:
        spread = f"{min(counts):,} to {max(counts):,} rows a day"
        lines.append(("window", f"{days[0]} to {days[-1]}, {len(days)} days with {spread}"))
        low, high = totals.actions.min(), totals.actions.max()
        lines.append(("actions", f"{surface.num_actions} actions with {low:,} to {high:,} rows each"))
    for m, name in enumerate(surface.objectives):
        lines.append((f"reward {name}", f"{totals.rewards[m] / good:.4f} of rows"))
    for k, name in enumerate(surface.metrics):
        rows = int(totals.metric_rows[k])
        lines.append((f"metric {name}", f"mean {totals.metric_sums[k] / rows:.4f}" if rows else "not logged"))
    for c, name in enumerate(surface.state.context):
        lines.append((f"context {name}", f"{100 * totals.unknown[c] / good:.2f} % unknown"))
    if surface.state.history is not None:
        unknown = 100 * totals.history_unknown / max(totals.history, 1)
        lines.append(
            (
                "history",
                f"{totals.history / good:.1f} actions a row, {unknown:.2f} % of unknown type (left out)",
            )
        )
    cohorts = ", ".join(f"{name} {100 * n / good:.1f} %" for name, n in totals.cohorts.most_common(12))
    lines.append(("cohorts", cohorts or "not logged"))
    strangers = sorted(set(totals.cohorts) - set(surface.cohorts) - {"(none)"})
    if strangers:
        lines.append(("cohorts unknown to the surface", ", ".join(strangers[:12])))
    return lines


def ratio_line(surface: Surface, ratio: SampleRatio) -> str:
    """The sample-ratio check as one line; a warning names the actions that deviate."""
    figures = f"chi-square {ratio.chi_square:.1f}, p = {ratio.p_value:.3g}"
    if not ratio.suspicious:
        return f"sample ratio: actions occur as often as the logged propensities say ({figures})"
    named = "; ".join(
        f"action {a} ({_weights(surface, a)}) has {rows:,} rows, expected {expected:,.0f}"
        for a, rows, expected in ratio.deviating[:SHOWN_ACTIONS]
    )
    more = len(ratio.deviating) - SHOWN_ACTIONS
    return (
        f"warning: sample ratio: action frequencies contradict the logged propensities ({figures}): "
        f"{named or 'no single action stands out'}" + (f"; and {more} more" if more > 0 else "")
    )


def _weights(surface: Surface, action: int) -> str:
    values = surface.actions[action]
    return ", ".join(
        f"{head} {value:g}" for head, value in zip(surface.controlled_heads, values, strict=True)
    )
