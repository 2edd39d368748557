"""Prompt files: one prompt a line (.txt), or records (.json, .jsonl, .csv, .tsv); every fault with its file and line.

A record is a string, or an object with "prompt" and, where there are any, "tag" and "metadata". An object with other
keys (GenEval's include and exclude) is its own metadata. A table has a header; its columns are the keys, and "Prompts"
and "Category" (DrawBench) stand for prompt and tag.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from rtdmd.common.errors import UserError
from rtdmd.prompts.records import BadPrompt, Faults, Source

SEPARATORS = {".csv": ",", ".tsv": "\t"}
SUFFIXES = (".txt", ".json", ".jsonl", *SEPARATORS)
_COLUMNS = {"prompts": "prompt", "category": "tag"}  # of a table's header, in lower case
_BOM = b"\xef\xbb\xbf"
_OTHER_BOMS = (b"\xff\xfe", b"\xfe\xff")  # UTF-16 and, beginning alike, UTF-32

Check = Callable[[Source], Source]


def file_sources(path: Path, label: str, faults: Faults, max_characters: float = math.inf) -> list[Source]:
    """The prompts of a file, in order; ``label`` is what errors call it.

    A faulty line goes to ``faults``; a file that cannot be read at all, or with no prompt in it, is a UserError.
    """
    if path.suffix not in SUFFIXES:
        raise UserError(f"{label}: prompts are read from {', '.join(SUFFIXES)} files")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{label}: cannot be read ({error.strerror}); see prepare_prompts in params.yaml") from error
    if data.startswith(_OTHER_BOMS):
        raise UserError(f"{label}: not UTF-8 but UTF-16; save the file as UTF-8")
    sources = []
    for where, parse in _entries(data.removeprefix(_BOM), path.suffix, label):
        try:
            sources.append(_source(parse(), where, max_characters))
        except BadPrompt as bad:
            faults.add(bad)
    if not sources:
        raise UserError(f"{label}: there is no prompt in it" + (" that can be used" if faults.dropped else ""))
    return sources


def checked(sources: list[Source], check: Check, faults: Faults) -> list[Source]:
    """``check`` of every source; what it finds bad goes to ``faults``."""
    good = []
    for source in sources:
        try:
            good.append(check(source))
        except BadPrompt as bad:
            faults.add(bad)
    return good


def _entries(data: bytes, suffix: str, label: str) -> Iterator[tuple[str, Callable[[], Any]]]:
    """(where, a function that gives the entry or raises BadPrompt) of each entry of a file; blank lines are none."""
    if suffix in (".txt", ".jsonl"):
        for number, raw in enumerate(data.split(b"\n"), start=1):
            if raw.strip():
                yield f"{label}:{number}", _LineOf(raw, f"{label}:{number}", suffix == ".jsonl")
        return
    rows = _list(_whole(data, label), label) if suffix == ".json" else _table(_whole(data, label), suffix, label)
    yield from rows


class _LineOf:
    """One line of a file, decoded when called."""

    def __init__(self, raw: bytes, where: str, is_json: bool):
        self.raw, self.where, self.is_json = raw, where, is_json

    def __call__(self) -> Any:
        try:
            text = self.raw.decode("utf-8")
        except UnicodeDecodeError as error:
            says = f"not UTF-8 (byte {error.start + 1}); save the file as UTF-8"
            raise BadPrompt("encoding", self.where, says) from error
        return _parse(text, self.where) if self.is_json else text


def _whole(data: bytes, label: str) -> str:
    """The text of a file that is read as a whole; UserError with the line where it is not UTF-8."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{label}:{line}: not UTF-8 (byte {error.start + 1} of the file); save it as UTF-8") from error


def _list(text: str, label: str) -> Iterator[tuple[str, Callable[[], Any]]]:
    try:
        values = _parse(text, label)
    except BadPrompt as bad:
        raise UserError(str(bad)) from bad  # a list with a fault in it has no entries to keep
    if not isinstance(values, list):
        raise UserError(f"{label}: a list of prompts is expected, got {type(values).__name__}")
    for number, value in enumerate(values, start=1):
        yield f"{label}: item {number}", partial(_as_given, value)


def _as_given(value: Any) -> Any:
    return value


def _table(text: str, suffix: str, label: str) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Rows of a table with a header, as objects; empty cells are null."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=SEPARATORS[suffix], strict=True)
    try:
        header = [_COLUMNS.get(name.strip().lower(), name.strip()) for name in next(reader, [])]
        if "prompt" not in header:
            raise UserError(f"{label}:1: a header with the column prompt is expected, got {', '.join(header)}")
        for row in reader:
            where = f"{label}:{reader.line_num}"
            if any(cell.strip() for cell in row):
                yield where, partial(_record, header, row, where)
    except csv.Error as error:
        raise UserError(f"{label}:{reader.line_num}: not {suffix[1:]} ({error})") from error


def _record(header: list[str], row: list[str], where: str) -> dict[str, Any]:
    if len(row) != len(header):
        raise BadPrompt("malformed", where, f"{len(header)} columns are expected, got {len(row)}")
    return {key: cell or None for key, cell in zip(header, row, strict=True)}


def _parse(text: str, where: str) -> Any:
    def refuse(constant: str) -> NoReturn:
        raise BadPrompt("malformed", where, f"{constant} is no JSON number")

    try:
        return json.loads(text, parse_constant=refuse)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if "\n" in text.strip() else ""
        raise BadPrompt("malformed", where, f"not JSON ({error.msg}, {line}column {error.colno})") from error


def _source(value: Any, where: str, max_characters: float) -> Source:
    """One entry of a file: a string, or an object with a prompt."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        says = f"half a character ({json.dumps(error.object[error.start])}), which UTF-8 cannot hold"
        raise BadPrompt("encoding", where, says) from error
    if isinstance(value, str):
        return Source(_text(value, where, max_characters), None, None, where)
    if not isinstance(value, dict) or "prompt" not in value:
        got = json.dumps(value)[:80]
        raise BadPrompt("malformed", where, f'a string or an object with "prompt" is expected, got {got}')
    prompt = _text(value["prompt"], where, max_characters)
    tag = _typed(value, "tag", str, where)
    if "metadata" in value:
        return Source(prompt, tag, _typed(value, "metadata", dict, where), where)
    own = set(value) - {"prompt", "tag", "id"}
    return Source(prompt, tag, {**value, "prompt": prompt} if own else None, where)


def _text(value: Any, where: str, max_characters: float) -> str:
    shown = json.dumps(value)[:80]
    if not isinstance(value, str):
        raise BadPrompt("malformed", where, f"the prompt is {shown}; a text that is not empty is expected")
    text = value.strip()
    if not text:
        raise BadPrompt("empty", where, f"the prompt is {shown}; a text that is not empty is expected")
    if "\ufeff" in text:
        raise BadPrompt("encoding", where, f"the prompt is {shown}, with a byte order mark in it")
    if len(text) > max_characters:
        says = f"the prompt has {len(text)} characters, above prepare_prompts.max_characters: {max_characters}"
        raise BadPrompt("overlong", where, says)
    return text


def _typed(value: dict[str, Any], key: str, kind: type, where: str) -> Any:
    found = value.get(key)
    if found is not None and not isinstance(found, kind):
        says = f"{key} is {json.dumps(found)[:80]}; {kind.__name__} or null is expected"
        raise BadPrompt("malformed", where, says)
    return found
