"""Strings of users and of foreign files are text wherever they go."""

from __future__ import annotations

import ast
import random

import pytest
from markdown_it import MarkdownIt

from rtdmd.common.escape import code_span, markdown, printable, python_string

EVIL = (
    "![x](https://example.org/p.png)",
    "<script>alert(1)</script>",
    "a | b\n\n# A heading\n",
    "`code` **bold** _em_ ~~gone~~ $x$",
    "</td><img src=x onerror=alert(1)>",
    "[link](javascript:alert(1))",
    "\x1b[2J\x1b]0;title\x07",
    '"); import os; os.abort()  # ',
    "'''\n```\n\n```python\nraise SystemExit\n```",
    "\u202eright to left\u202c \u2028 \x85 \ud800",
    "\\",
    '\\"',
    "&lt;b&gt; &#60;",
)
PIECES = [
    "a",
    " ",
    '"',
    "'",
    "\\",
    "`",
    "```",
    "\n",
    "|",
    "<b>",
    "[",
    "](",
    "_",
    "*",
    "\x1b[0m",
    "\u202e",
    "é",
    "\ud800",
]


def drawn(seed: int) -> str:
    dice = random.Random(seed)
    return "".join(dice.choices(PIECES, k=12))


@pytest.mark.parametrize("text", [*EVIL, *map(drawn, range(200))])
def test_any_string_is_itself_in_python_and_text_in_markdown(text: str) -> None:
    literal = python_string(text)
    assert ast.literal_eval(literal) == text
    assert len(literal.splitlines()) == 1
    shown = printable(text)
    assert all(mark.isprintable() for mark in shown)
    reader = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    inner = reader.parseInline(markdown(f"x{text}x"))[0].children
    assert {token.type for token in inner} <= {"text", "text_special"}
    assert "".join(token.content for token in inner) == f"x{shown}x"
    (span,) = (token for token in reader.parseInline(f"x {code_span(text)} x")[0].children if token.type != "text")
    assert span.type == "code_inline"
    assert span.content.strip() == shown.strip()
    table = reader.parse(f"| {markdown(text)} | b |\n|---|---|\n")
    assert [token.type for token in table].count("th_open") == 2


@pytest.mark.parametrize(
    "text", ["a photo of a red circle, left of", "two_object 3.5-medium", "FLUX.2-klein-base-4B", "红　苹果"]
)
def test_ordinary_text_keeps_its_bytes(text: str) -> None:
    assert markdown(text) == printable(text) == text
    assert python_string(text) == f'"{text}"'
    assert code_span(text) == f"`{text}`"
