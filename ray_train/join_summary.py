"""What ``join`` shows: where every decision and every event went."""

from __future__ import annotations

from collections import Counter

from rich.console import Console
from rich.table import Table

from ray_train.attribution import Attribution
from ray_train.joining import JoinCounts


def print_counts(console: Console, rules: Attribution, counts: JoinCounts) -> None:
    """Decisions and events by what became of them, rewards, and where the next run starts."""
    for title, part in (("decisions", counts.decisions), ("events", counts.events)):
        console.print(_table(title, part))
    rewards = ", ".join(f"{name} {100 * n / counts.rows:.2f} %" for name, n in counts.rewards.items())
    console.print(f"rows with a reward: {rewards}", soft_wrap=True, highlight=False)
    console.print(
        f"closed up to {rules.closed_until.isoformat()}; "
        f"the next run: --after {rules.next_after.isoformat()}",
        soft_wrap=True,
        highlight=False,
    )


def _table(title: str, part: Counter[str]) -> Table:
    table = Table(title, "rows")
    for name, number in part.most_common():
        table.add_row(name, f"{number:,}")
    table.add_row("together", f"{part.total():,}", style="bold")
    return table
