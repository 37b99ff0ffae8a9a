"""What the pages of this room are made of: one file each, readable without scripts and offline."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from html import escape

from ray_train.page_style import SCRIPT, STYLE

Row = tuple[Sequence[str], str]
"""The cells of a table's row, and its class: ``quiet`` for what is not the news."""


def document(title: str, sections: Iterable[str]) -> str:
    """The whole page."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # An empty icon keeps browsers from asking the server for one.
        f'<link rel="icon" href="data:,">\n<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n'
        f"<body>\n<main>\n{''.join(sections)}</main>\n"
        f'<div id="tip" role="status" hidden></div>\n<script>{SCRIPT}</script>\n</body>\n</html>\n'
    )


def header(title: str, level: str, headline: str, verdict: str, facts: Iterable[tuple[str, str]]) -> str:
    """What the page is about, the verdict (``better``, ``nothing`` or neutral), and the facts behind it."""
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts if value)
    return (
        f"<header><h1>{escape(title)}</h1>"
        f'<p class="verdict {escape(level)}"><strong>{escape(headline)}</strong> {escape(verdict)}</p>'
        f"<dl>{rows}</dl></header>\n"
    )


def section(title: str, body: str, note: str = "") -> str:
    """A titled part of the page; nothing without a body."""
    caption = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"<section><h2>{escape(title)}</h2>{caption}{body}</section>\n" if body else ""


def figure(svg: str, kind: str = "") -> str:
    """A picture in its frame."""
    return f'<figure class="{kind}"><div class="scroll">{svg}</div></figure>'


def grid(figures: Iterable[str]) -> str:
    """Pictures side by side where there is room."""
    return f'<div class="panels">{"".join(figures)}</div>'


def table(head: Sequence[str], body: Iterable[Row]) -> str:
    """A table; see :func:`_cell` for what goes below in small."""
    titles = "".join(f'<th scope="col">{escape(title)}</th>' for title in head)
    rows = "".join(
        f'<tr class="{kind}">' + "".join(_cell(cell) for cell in cells) + "</tr>" for cells, kind in body
    )
    return f'<div class="scroll"><table><thead><tr>{titles}</tr></thead><tbody>{rows}</tbody></table></div>'


def _cell(content: str) -> str:
    """One cell; an interval, or what follows a line break, goes below in small."""
    head, _, tail = escape(content).replace(" [", "\n[").partition("\n")
    return f"<td>{head}<small>{tail}</small></td>" if tail else f"<td>{head}</td>"


def instant(text: str) -> str:
    """An ISO instant for people."""
    return f"{datetime.fromisoformat(text):%Y-%m-%d %H:%M}"
