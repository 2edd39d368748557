"""Tables of prompts with a header: .csv with quotes as RFC 4180 has them, and .tsv, in which quotes are text unless the
header is in quotes.

The column of prompts is "prompt", or as public files call it (PartiPrompts "Prompt", DrawBench "Prompts", DPG "text"),
that of tags "tag" or "Category"; upper and lower case are alike. Every other column is metadata under its own name.
A row with a fault in it is one fault, and the rows behind it are read.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from itertools import islice
from typing import Any

from rtdmd.common.errors import UserError
from rtdmd.prompts.records import BadPrompt

SEPARATORS = {".csv": ",", ".tsv": "\t"}
_NAMES = {"prompt": ("prompt", "prompts", "text", "caption"), "tag": ("tag", "category")}  # the first that is there
_MOST_LINES = 1000  # of one row: a quote that is never closed would take all that follow

Row = tuple[str, Any]  # where, and the record (as cells or as an object) or the BadPrompt that it is


def table_rows(text: str, separator: str, label: str) -> Iterator[Row]:
    """Rows as objects, empty cells as null. UserError where the header cannot be read or has no column of prompts."""
    rows = _records(text, separator, label)
    _, first = next(rows, ("", []))
    if isinstance(first, BadPrompt):
        raise UserError(str(first))
    header = _header(first, label)
    for where, cells in rows:
        if isinstance(cells, BadPrompt):
            yield where, cells
        elif len(cells) != len(header):
            yield where, BadPrompt("malformed", where, f"{len(header)} columns are expected, got {len(cells)}")
        else:
            yield where, {key: cell or None for key, cell in zip(header, cells, strict=True)}


def _header(cells: list[str], label: str) -> list[str]:
    header = [" ".join(cell.split()) for cell in cells]
    for meant, names in _NAMES.items():
        lower = [name.lower() for name in header]
        found = next((name for name in names if name in lower), None)
        if found is not None:
            header[lower.index(found)] = meant
    if "prompt" not in header:
        raise UserError(f"{label}:1: a header with the column prompt is expected, got {', '.join(header)}"[:300])
    twice = next((name for name in header if header.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{label}:1: the column {twice or 'without a name'} is there twice; give them different names")
    return header


def _records(text: str, separator: str, label: str) -> Iterator[Row]:
    """The cells of each row that is not blank."""
    lines = text.split("\n")
    plain = separator == "\t" and not lines[0].startswith('"')
    number = 0
    while number < len(lines):
        where = f"{label}:{number + 1}"
        if plain and not _is_quoted(lines[number]):
            if lines[number].strip():
                yield where, lines[number].removesuffix("\r").split(separator)
            number += 1
            continue
        block = [line + "\n" for line in islice(lines, number, number + _MOST_LINES)]
        reader = csv.reader(block, delimiter=separator, strict=True)
        try:
            row = next(reader, [])
        except csv.Error as error:
            yield where, BadPrompt("malformed", where, f"a quote is not closed or misplaced ({error})")
            number += 1
            continue
        if any(cell.strip() for cell in row):
            yield where, row
        number += max(reader.line_num, 1)


def _is_quoted(line: str) -> bool:
    """Whether a row of a .tsv is written as a .csv's: it has a cell in quotes that doubles the quotes inside. In all
    other rows quotes are text: PartiPrompts has a prompt that begins with a word in quotes."""
    for cell in line.removesuffix("\r").split("\t"):
        inside = cell[1:-1]
        if cell[:1] == '"' and cell[-1:] == '"' and '""' in inside and '"' not in inside.replace('""', ""):
            return True
    return False
