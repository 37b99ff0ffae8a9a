"""The cells of a folder → ``learning.md`` and ``learning.html``: table, targets, gate beside truth."""

from __future__ import annotations

from html import escape
from pathlib import Path

import numpy as np

from benchmarks.learning.cells import ALPHAS
from benchmarks.learning.pictures import by_alpha_picture, by_rows_picture
from benchmarks.learning.summaries import (
    Cells,
    Groups,
    against_production,
    against_static,
    one_cell_per_seed,
    passed,
    read_cells,
    spread,
)
from benchmarks.learning.verdicts import gate_lines, gate_table, target_lines
from ray_train.learners import DEFAULT_LEARNER
from triton_models.files import write_atomically

TARGET_FEED = "boards"
"""Where the targets are judged: nothing was chosen on it."""
NULL_FEED = "boards-null"
STYLE = (
    "body{font:15px system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#222}"
    "pre{font-size:12px;overflow-x:auto}svg{max-width:100%;height:auto}li{margin:.3em 0}"
)


def write_report(folder: Path) -> str:
    """``learning.md`` and ``learning.html`` of all cells in a folder.

    Returns:
        The tables.

    Raises:
        BenchmarkError: there is no cell, or a damaged one.
    """
    feeds = read_cells(folder)
    text = "\n".join(_feed_text(feed, groups) for feed, groups in sorted(feeds.items()))
    write_atomically(folder / "learning.md", text)
    page = "".join(_feed_page(feed, groups) for feed, groups in sorted(feeds.items()))
    head = f"<!doctype html><meta charset=utf-8><title>Learning</title><style>{STYLE}</style>"
    title = "<h1>Share of the achievable personalization gain captured</h1>"
    write_atomically(folder / "learning.html", f"{head}{title}{page}")
    return text


def _feed_text(feed: str, groups: Groups) -> str:
    lines = [f"### {feed}", "", *_tables(feed, groups), ""]
    return "\n".join([*lines, *(f"- {line}" for line in _findings(feed, groups))]) + "\n"


def _tables(feed: str, groups: Groups) -> list[str]:
    """Shares; where there is no gain to share, what was lost."""
    if feed == NULL_FEED:
        return [*_values(groups), "", _gain(groups), "", *gate_table(groups)]
    return [*_table(groups), "", _gain(groups)]


def _feed_page(feed: str, groups: Groups) -> str:
    """Pictures need a gain to share: in a world without one a share is noise over noise."""
    pictures = "" if feed == NULL_FEED else by_rows_picture(groups) + by_alpha_picture(groups)
    findings = "".join(f"<li>{escape(line)}</li>" for line in _findings(feed, groups))
    rest = "\n".join(_tables(feed, groups))
    return f"<h2>{escape(feed)}</h2>{pictures}<ul>{findings}</ul><pre>{escape(rest)}</pre>"


def _findings(feed: str, groups: Groups) -> list[str]:
    targets = target_lines(groups, DEFAULT_LEARNER) if feed == TARGET_FEED else []
    return [*targets, *gate_lines(groups)]


def _table(groups: Groups) -> list[str]:
    alphas = " | ".join(f"α {alpha}" for alpha in ALPHAS)
    lines = [
        f"| rows | learner | captured, mean | seeds | least, most | {alphas} | core s | gate |",
        "|" + "---|" * (7 + len(ALPHAS)),
    ]
    for (rows, learner), cells in sorted(groups.items()):
        cpu_s = float(np.mean([cell["cpu_s"] for cell in cells]))
        shares = [cell["captured"] for cell in cells]
        lines.append(f"| {rows:,} | {_row(learner, shares)} | {cpu_s:.0f} | {_verdicts(cells)} |")
    worlds = one_cell_per_seed(groups)
    for name in ("production", "uniform"):
        lines.append(f"| | {_row(name, [cell['references'][name] for cell in worlds])} | | |")
    lines.append(f"| | best static vector of the truth | 0 | {len(worlds)} | |{' 0 |' * len(ALPHAS)} | |")
    return lines


def _values(groups: Groups) -> list[str]:
    lines = [
        "| rows | learner | seeds | against best static, % of production's value | against production, % |",
        "|---|---|---|---|---|",
    ]
    for (rows, learner), cells in sorted(groups.items()):
        ahead = (spread([100 * of(cell) for cell in cells]) for of in (against_static, against_production))
        lines.append(f"| {rows:,} | {learner} | {len(cells)} | {' | '.join(ahead)} |")
    return lines


def _row(name: str, shares_SP: list[list[float]]) -> str:
    """Mean over α, then every α, each with its interval over seeds."""
    means = [float(np.mean(shares)) for shares in shares_SP]
    per_alpha = " | ".join(spread(list(column)) for column in zip(*shares_SP, strict=True))
    return f"{name} | {spread(means, 3)} | {len(means)} | {min(means):.2f}, {max(means):.2f} | {per_alpha}"


def _gain(groups: Groups) -> str:
    gains = [cell["references"]["gain"] for cell in one_cell_per_seed(groups)]
    mean = ", ".join(f"{gain:.2%}" for gain in np.mean(gains, axis=0))
    return f"Achievable gain, % of production's value: {mean}."


def _verdicts(cells: Cells) -> str:
    judged = [cell for cell in cells if cell["verdict"]]
    levels = [cell["verdict"]["level"] for cell in judged]
    told = ", ".join(f"{levels.count(level)} × {level}" for level in sorted(set(levels)))
    return f"{told}; {sum(map(passed, judged))} pass" if judged else ""
