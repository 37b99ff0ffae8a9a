"""``chaos.html``: verdicts, timelines and tables on one self-contained page."""

from __future__ import annotations

from html import escape

from benchmarks.chaos.measure import Measured
from benchmarks.chaos.pictures import stage_timeline
from benchmarks.chaos.report import about, all_verdicts, stage_note, stage_table
from benchmarks.pages import figures, page, section, table

TITLE = "Faults under load: what callers noticed"


def render_page(measured: Measured) -> str:
    """The whole page."""
    sections = []
    for stage in measured.stages:
        body = figures([stage_timeline(stage)], wide=True) + table(stage_table(stage))
        body += "".join(f"<p class='note'>{escape(note)}</p>" for note in stage.notes)
        note = stage_note(stage) + " Bands: from the fault to when what was broken works again; purple: "
        note += "failed or refused requests a second; p99 is cut off at 8 × the fault-free one (dashed)."
        sections.append(section(f"{stage.name}: {stage.title}", body, note))
    return page(TITLE, about(measured), [(v.line(), v.hit) for v in all_verdicts(measured)], sections)
