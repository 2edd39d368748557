"""Strings of users and of foreign files, written so that they are text where they go: Markdown, Python, a terminal.

Ordinary names and prompts come out as they are.
"""

from __future__ import annotations

import json
import re
import unicodedata

_JOINERS = "\u200c\u200d"  # of Persian and Indic letters, and of emoji
_MARKDOWN = re.compile(r"[\\`*\[\]<>|~$]|(?<!\w)_|_(?!\w)|&(?=[#\w]+;)")


def printable(text: object) -> str:
    """The text with every character that shows nothing by itself as Python writes it (``\\x1b``): control characters,
    so escape sequences too, line ends, marks that turn the direction of writing, lone surrogates. Spaces and joiners
    stay."""
    return "".join(mark if _shows(mark) else mark.encode("unicode_escape").decode() for mark in str(text))


def _shows(mark: str) -> bool:
    return mark.isprintable() or mark in _JOINERS or unicodedata.category(mark) == "Zs"


def markdown(text: object) -> str:
    """The text in a line or in a table's cell of Markdown, with no emphasis, link, picture, HTML or column of its own.
    Underscores inside a word mean nothing there and stay."""
    return _MARKDOWN.sub(lambda found: f"\\{found[0]}", printable(text))


def code_span(text: object) -> str:
    """The text between backticks, more of them than it has in a row itself."""
    shown = printable(text)
    ticks = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
    return f"{ticks} {shown} {ticks}" if "`" in shown else f"{ticks}{shown}{ticks}"


def python_string(text: object) -> str:
    """A Python literal of the text, in double quotes and on one line."""
    return printable(json.dumps(str(text), ensure_ascii=False))
