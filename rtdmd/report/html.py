"""The few HTML pieces of the report, and its style sheet. Every text is escaped here, so that nothing else has to."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0; background: #f6f8fa; color: #1f2328; font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto,
"Helvetica Neue", Arial, sans-serif; }
main { max-width: 1200px; margin: 0 auto; padding: 32px 20px 60px; }
h1 { font-size: 30px; line-height: 1.25; margin: 0 0 6px; letter-spacing: -0.01em; }
h2 { font-size: 20px; margin: 0 0 4px; }
h3 { font-size: 15px; margin: 20px 0 6px; }
p { margin: 0 0 10px; }
.lead { font-size: 17px; color: #424a53; max-width: 920px; margin-bottom: 20px; }
.read { color: #59636e; font-size: 14px; max-width: 980px; }
section { background: #fff; border: 1px solid #d8dee4; border-radius: 8px; padding: 20px 24px 22px; margin: 18px 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; margin: 10px 0 4px; }
table { font-variant-numeric: tabular-nums; font-size: 14px; }
th, td { padding: 6px 7px; text-align: right; white-space: nowrap; vertical-align: top; }
td { border-bottom: 1px solid #eaeef2; }
th { font-weight: 600; line-height: 1.3; color: #59636e; border-bottom: 1px solid #d0d7de; }
th { white-space: normal; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; white-space: normal; min-width: 150px; }
th:first-child, td:first-child { position: sticky; left: 0; background: #fff; }
tr.best td { background: #f0f9f3; }
tr.real td { color: #59636e; border-top: 1px solid #d0d7de; }
td small { color: #6e7781; font-size: 12px; }
table.wide td { text-align: left; white-space: normal; overflow-wrap: anywhere; vertical-align: top; }
table.wide td:first-child { white-space: nowrap; width: 240px; color: #59636e; }
img, svg { max-width: 100%; height: auto; display: block; }
.curves { display: grid; grid-template-columns: repeat(3, 1fr); gap: 6px 16px; }
code, pre { font: 13px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
pre { background: #f6f8fa; border-radius: 6px; padding: 12px 14px; overflow-x: auto; margin: 6px 0; }
details { border-top: 1px solid #eaeef2; padding: 8px 0; }
summary { cursor: pointer; font-weight: 600; }
svg text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif; }
@media print { body { background: #fff; } section { border: 0; padding: 0; break-inside: avoid; } }
"""


def page(title: str, lead: str, sections: Iterable[str]) -> str:
    """The whole document; ``lead`` is text, the sections are HTML."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        f'<h1>{escape(title)}</h1>\n<p class="lead">{escape(lead)}</p>\n'
        + "\n".join(sections)
        + "\n</main>\n</body>\n</html>\n"
    )


def section(title: str, how_to_read: str, body: str, anchor: str, suite: str = "") -> str:
    """A titled box: the sentence on how to read it, then the HTML ``body``; of one suite where ``suite`` names it."""
    if suite:
        title = f"{title}: {suite}"
        anchor = f"{anchor}-{suite}"
    head = f'<section id="{escape(anchor)}">\n<h2>{escape(title)}</h2>\n<p class="read">{escape(how_to_read)}</p>\n'
    return f"{head}{body}\n</section>"


def table(header: Sequence[str], rows: Iterable[Sequence[str]], classes: Sequence[str] = (), kind: str = "") -> str:
    """A table of escaped header texts and rows of HTML cells; ``classes`` names a class for each row, or is empty."""
    head = "".join(f"<th>{escape(text)}</th>" for text in header)
    lines = []
    for i, row in enumerate(rows):
        style = f' class="{classes[i]}"' if classes and classes[i] else ""
        lines.append(f"<tr{style}>" + "".join(f"<td>{text}</td>" for text in row) + "</tr>")
    top = f"<thead><tr>{head}</tr></thead>" if header else ""
    style = f' class="{kind}"' if kind else ""
    return f'<div class="scroll"><table{style}>{top}<tbody>{"".join(lines)}</tbody></table></div>'


def cell(value: Mapping[str, float | None]) -> str:
    """A mean with its half-width over noise, as a table cell."""
    width = "" if value["ci95"] is None else f" <small>± {value['ci95']:.3f}</small>"
    return f"{value['mean']:.3f}{width}"


def plain(value: float | None, digits: int = 3) -> str:
    """A figure without interval."""
    return "–" if value is None else f"{value:.{digits}f}"


def picture(path: Path, text: str) -> str:
    """A PNG inside the page."""
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img src="data:image/png;base64,{data}" alt="{escape(text)}">'


def details(title: str, body: str) -> str:
    """A part that opens on a click."""
    return f"<details><summary>{escape(title)}</summary>{body}</details>"
