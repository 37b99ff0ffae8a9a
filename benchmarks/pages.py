"""Pages of measurements: self-contained HTML around SVG pictures, and a PNG of the whole."""

from __future__ import annotations

import logging
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from html import escape
from pathlib import Path

from ray_train.page_style import SCRIPT
from ray_train.page_style import STYLE as COMMON_STYLE

logger = logging.getLogger(__name__)

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
RENDER_TIMEOUT_S = 60.0
SHOWN = 8
"""So many verdicts are listed in the open."""

STYLE = (
    COMMON_STYLE
    + """
main{max-width:1240px}td:first-child{min-width:150px}td{white-space:normal}td:last-child{min-width:150px}
.bar{opacity:.55}.fault{fill:var(--bad);opacity:.12}figure.wide svg{max-width:1180px}
li.missed{color:var(--bad);font-weight:600}li.held{color:var(--good)}
td:first-child,th:first-child{white-space:normal}table{display:block;overflow-x:auto}
text.fault-name{font-size:11px;fill:var(--ink)}
"""
)


def page(title: str, about: str, lines: Sequence[tuple[str, bool]], sections: Sequence[str]) -> str:
    """A whole page.

    Args:
        title: heading.
        about: machine, versions, command: one paragraph.
        lines: verdicts, and whether each was held.
        sections: made by :func:`section`, :func:`figures` and :func:`table`.
    """
    verdicts = _verdicts(lines)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<link rel="icon" href="data:,">\n<title>{escape(title)}</title>\n<style>{STYLE}</style>\n'
        f"</head>\n<body>\n<main>\n<h1>{escape(title)}</h1><p class='note'>{escape(about)}</p>{verdicts}"
        f'{"".join(sections)}</main>\n<div id="tip" role="status" hidden></div>\n'
        f"<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def _verdicts(lines: Sequence[tuple[str, bool]]) -> str:
    """What was missed, open to the eye; all of it one click away."""
    if not lines:
        return ""
    missed = "".join(f'<li class="missed">{escape(line)}</li>' for line, good in lines if not good)
    every = "".join(f'<li class="{"held" if good else "missed"}">{escape(line)}</li>' for line, good in lines)
    count = sum(good for _, good in lines)
    shown = " open" if len(lines) <= SHOWN else ""
    return (
        f"<p>{count} of {len(lines)} targets held.</p>{f'<ul>{missed}</ul>' if missed and not shown else ''}"
        f"<details{shown}><summary>each target</summary><ul>{every}</ul></details>"
    )


def section(title: str, body: str, note: str = "") -> str:
    """A heading with what belongs to it."""
    about = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"<section><h2>{escape(title)}</h2>{about}{body}</section>\n"


def figures(pictures: Sequence[str], *, wide: bool = False) -> str:
    """Pictures side by side, or each over the whole width."""
    kind = ' class="wide"' if wide else ""
    body = "".join(f'<figure{kind}><div class="scroll">{picture}</div></figure>' for picture in pictures)
    return f'<div class="panels">{body}</div>'


def table(markdown: Sequence[str]) -> str:
    """A Markdown table as HTML."""
    rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in markdown]
    head = "".join(f"<th>{escape(cell)}</th>" for cell in rows[0])
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>"
        for row in rows[1:]
        if not set("".join(row)) <= set("-: ")
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def standalone(svg: str) -> str:
    """A picture as a file of its own: its style inside, on white."""
    style = STYLE.replace("<", "&lt;")
    opened = re.sub(r"^<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', svg)
    return opened.replace(">", f"><style>{style} svg{{background:#fff;padding:8px}}</style>", 1)


def render_png(html: Path, png: Path, *, width: int = 1180, height: int = 1600) -> bool:
    """A PNG of a page by headless Chromium; False, with a log line, where there is none."""
    program = next((found for name in CHROMIUM if (found := shutil.which(name))), None)
    if program is None:
        logger.warning("no Chromium here: %s is not rendered", png)
        return False
    with tempfile.TemporaryDirectory(prefix="puts-chromium-") as profile:
        command = [program, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += [f"--user-data-dir={profile}", f"--window-size={width},{height}"]
        command += [f"--screenshot={png.resolve()}", html.resolve().as_uri()]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=RENDER_TIMEOUT_S)
        except (subprocess.SubprocessError, OSError) as error:
            logger.warning("%s was not rendered: %s", png, error)
            return False
    return png.exists()
