"""``cost.html``: the measurement as one self-contained page, readable without scripts and offline."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from benchmarks.cost.measure import Measurement
from benchmarks.cost.pictures import cost_by_batch, parts_legend, roofline, time_through_triton
from benchmarks.cost.report import target_lines
from ray_train.page_style import SCRIPT
from ray_train.page_style import STYLE as COMMON_STYLE

STYLE = (
    COMMON_STYLE
    + """
:root{--c6:#8a6d00;--c7:#64748b}@media(prefers-color-scheme:dark){:root{--c6:#d9bd4a;--c7:#a3b1c2}}
.c6{fill:var(--c6)}.c7{fill:var(--c7)}.curve.c6{stroke:var(--c6)}.curve.c7{stroke:var(--c7)}
figure.wide svg{max-width:960px}
.spread{stroke-width:6;opacity:.18}.spread.c0{stroke:var(--c0)}.spread.c1{stroke:var(--c1)}
.spread.c2{stroke:var(--c2)}.spread.c3{stroke:var(--c3)}.spread.c4{stroke:var(--c4)}
.spread.c5{stroke:var(--c5)}.spread.c6{stroke:var(--c6)}.spread.c7{stroke:var(--c7)}
text.inside{fill:var(--bg);font-size:11px;pointer-events:none}text.tick-strong{font-size:12px}
.key.k0{background:var(--c0)}.key.k1{background:var(--c1)}.key.k2{background:var(--c2)}
.key.k3{background:var(--c3)}.key.k4{background:var(--c4)}.key.k5{background:var(--c5)}
.key.k6{background:var(--c6)}.key.k7{background:var(--c7)}
li.missed{color:var(--bad);font-weight:600}
"""
)


def render_page(measured: Measurement) -> str:
    """The whole page."""
    machine = measured.machine
    about = (
        f"{machine['time']}: {machine['cores']} cores of {machine['cpu']}, "
        f"{machine['gpu'] or 'no GPU'}; {machine['command']}"
    )
    sections = [f"<h1>What a choice costs</h1><p class='note'>{escape(about)}</p>", _targets(measured)]
    if measured.figures:
        note = "The vertical axis is logarithmic; pale bars hold the 5th to 95th percentile of all calls."
        sections.append(_section("In process", cost_by_batch(measured), note))
    if measured.triton is not None:
        labels = {subject.key: subject.label for subject in measured.subjects}
        note = "session: ONNX Runtime alone; python backend: what Triton's compute infer takes beyond it."
        bars = time_through_triton(measured.triton.shares, labels)
        sections.append(_section("Through Triton: where a call spends its time", bars, note, parts_legend()))
    if measured.gpu is not None and measured.gpu.figures:
        note = "The best mode of each precision; the dashed line is the target."
        sections.append(_section(f"On {measured.gpu.peaks.device}", roofline(measured.gpu), note))
    if measured.remarks:
        items = "".join(f"<li>{escape(remark)}</li>" for remark in measured.remarks)
        sections.append(f"<h2>Left out</h2><ul class='note'>{items}</ul>")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<link rel="icon" href="data:,">\n<title>What a choice costs</title>\n<style>{STYLE}</style>\n'
        f"</head>\n<body>\n<main>\n{''.join(sections)}</main>\n"
        f'<div id="tip" role="status" hidden></div>\n<script>{SCRIPT}</script>\n</body>\n</html>\n'
    )


def _section(title: str, svg: str, note: str, legend: str = "") -> str:
    return (
        f'<section><h2>{escape(title)}</h2><p class="note">{escape(note)}</p>{legend}'
        f'<figure class="wide"><div class="scroll">{svg}</div></figure></section>\n'
    )


def _targets(measured: Measurement) -> str:
    lines: Sequence[str] = target_lines(measured)
    items = "".join(
        f'<li class="{"missed" if line.endswith("MISSED") else "held"}">{escape(line)}</li>' for line in lines
    )
    return f"<ul>{items}</ul>" if items else ""
