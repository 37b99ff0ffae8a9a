"""``latency.html``: one self-contained page, readable without scripts and offline."""

from __future__ import annotations

from benchmarks.latency import pictures
from benchmarks.latency.measure import Measured
from benchmarks.latency.report import as_markdown, quantile_rows, ratios, verdicts
from benchmarks.pages import figures, page, section, table

TITLE = "What the control adds to a ranking's latency"


def render_page(measured: Measured) -> str:
    """The whole page."""
    text = as_markdown(measured).splitlines()
    sections = [section("Table", "".join(table(rows) for rows in _tables(text)))]
    for number, one in enumerate(measured.paired):
        rows = quantile_rows(one)
        drawn = [
            pictures.distributions(one, f"cdf{number}"),
            pictures.per_block(one, rows, f"blocks{number}"),
        ]
        note = (
            f"{one.requests:,} requests, {one.failures} failed; sent {one.lateness_ms[0]:.2f} ms (p50) and "
        )
        note += f"{one.lateness_ms[1]:.2f} ms (p99) later than due, which is inside these latencies."
        sections.append(section(f"{one.part} {one.title}: {one.loop}", figures(drawn), note))
    if measured.capacity:
        drawn = [pictures.capacities(measured, ratios(measured))]
        note = f"{measured.in_flight} callers, turns in random order, {measured.failures} failed."
        sections.append(section("P3 capacity", figures(drawn, wide=True), note))
    lines = [(verdict.line(), verdict.hit) for verdict in verdicts(measured)]
    return page(TITLE, text[0], lines, sections)


def _tables(text: list[str]) -> list[list[str]]:
    found: list[list[str]] = [[]]
    for line in text:
        if line.startswith("|"):
            found[-1].append(line)
        elif found[-1]:
            found.append([])
    return [rows for rows in found if rows]
