"""Prompt files: one prompt per line (.txt), or records (.json, .jsonl, .csv, .tsv); every fault with its file and line.

A record is a string, or an object with "prompt" and, where there are any, "tag" and "metadata". An object with other
keys (GenEval's include and exclude) is its own metadata. How a table is read: `rtdmd.prompts.tables`.
"""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rtdmd.common.errors import UserError
from rtdmd.common.files import sha256_file
from rtdmd.common.hub import fetching
from rtdmd.common.parsing import json_value, read_bytes
from rtdmd.prompts.records import BadPrompt, ErrorPolicy, Source, is_blank
from rtdmd.prompts.registration import Facts, FileParams, Reading
from rtdmd.prompts.tables import SEPARATORS, table_rows

SUFFIXES = (".txt", ".json", ".jsonl", *SEPARATORS)
_BOM = b"\xef\xbb\xbf"
_OTHER_BOMS = (b"\xff\xfe", b"\xfe\xff")  # UTF-16 and, beginning alike, UTF-32
_UNDECODED = range(0xDC80, 0xDD00)  # what "surrogateescape" makes of a byte that is not UTF-8
_SPACES = "\t\n\r"  # control characters that a prompt may have inside

Check = Callable[[Source], Source]
Entry = tuple[str, Any]  # where, and the entry or the BadPrompt that it is


def file_sources(path: Path, label: str, policy: ErrorPolicy, max_characters: float = math.inf) -> list[Source]:
    """The prompts of a file, in order; ``label`` is what errors call it.

    A faulty line goes to ``policy``; a file that cannot be read at all, or with no prompt in it, is a UserError.
    """
    if path.suffix not in SUFFIXES:
        raise UserError(f"{label}: prompts are read from {', '.join(SUFFIXES)} files")
    data = _bytes(path, label)
    sources = []
    for where, entry in _entries(data, path.suffix, label):
        try:
            sources.append(_source(entry, where, max_characters))
        except BadPrompt as bad:
            policy.add(bad)
    if not sources:
        raise UserError(f"{label}: there is no prompt in it" + (" that can be used" if policy.dropped else ""))
    return sources


def file_reader(check: Check | None = None) -> Callable[[FileParams, Reading], tuple[list[Source], Facts]]:
    """How a source that is a file is read: its prompts in order, each as ``check`` gives it, and the file's sha256."""

    def read(params: FileParams, reading: Reading) -> tuple[list[Source], Facts]:
        path, label = _found(params, reading)
        sources = file_sources(path, label, reading.policy, reading.max_characters)
        kept = sources if check is None else checked(sources, check, reading.policy)
        return kept, {"sha256": sha256_file(path)}

    return read


def _found(params: FileParams, reading: Reading) -> tuple[Path, str]:
    """The file behind a source, and how errors call it."""
    if params.repo is None or params.revision is None:
        return reading.input(params.path), params.path
    label = f"{params.repo}@{params.revision[:8]}/{params.path}"
    return dataset_file(params.repo, params.revision, params.path, reading.key), label


def dataset_file(repo: str, revision: str, path: str, key: str) -> Path:
    """A file of a Hub dataset, downloaded once and then read from the Hub's cache, offline too. UserError that says
    what to do: a gated or unknown dataset, no such commit or file, no connection."""
    from huggingface_hub import hf_hub_download

    with fetching(f"{key}.repo", f"{key}.revision", repo, revision, file=path, then="rtdmd prepare_prompts"):
        return Path(hf_hub_download(repo, path, repo_type="dataset", revision=revision))


def checked(sources: list[Source], check: Check, policy: ErrorPolicy) -> list[Source]:
    """``check`` of every source; what it finds bad goes to ``policy``."""
    good = []
    for source in sources:
        try:
            good.append(check(source))
        except BadPrompt as bad:
            policy.add(bad)
    return good


def _bytes(path: Path, label: str) -> bytes:
    """The file without its byte order mark. UserError where it is no text in UTF-8 at all."""
    try:
        data = read_bytes(path, "see prepare_prompts in params.yaml")
    except UserError as error:
        raise UserError(str(error).replace(str(path), label, 1)) from error
    if data.startswith(_OTHER_BOMS):
        raise UserError(f"{label}: not UTF-8 but UTF-16; save the file as UTF-8")
    if (at := data.find(b"\0")) >= 0:
        line = data.count(b"\n", 0, at) + 1
        raise UserError(f"{label}:{line}: a null byte, as UTF-16 without a mark has them; save the file as UTF-8")
    return data.removeprefix(_BOM)


def _entries(data: bytes, suffix: str, label: str) -> Iterator[Entry]:
    """The entries of a file; blank lines are none. A byte that is not UTF-8 is half a character until `_source` looks
    at it, so that it spoils its own entry alone."""
    text = data.decode("utf-8", "surrogateescape")
    if suffix == ".json":
        yield from _list(text, label)
    elif suffix in SEPARATORS:
        yield from table_rows(text, SEPARATORS[suffix], label)
    else:
        for number, line in enumerate(text.split("\n"), start=1):
            where = f"{label}:{number}"
            if line.strip():
                yield where, _parsed(line, where) if suffix == ".jsonl" else line


def _list(text: str, label: str) -> Iterator[Entry]:
    values = _parsed(text, label)
    if isinstance(values, BadPrompt):
        raise UserError(str(values))  # a list with a fault in it has no entries to keep
    if not isinstance(values, list):
        raise UserError(f"{label}: a list of prompts is expected, got {type(values).__name__}")
    for number, value in enumerate(values, start=1):
        yield f"{label}: item {number}", value


def _parsed(text: str, where: str) -> Any:
    """A value of JSON, or the BadPrompt that it is."""
    try:
        return json_value(text)
    except ValueError as error:
        return BadPrompt("malformed", where, str(error))


def _source(value: Any, where: str, max_characters: float) -> Source:
    """One entry of a file: a string, or an object with a prompt."""
    if isinstance(value, BadPrompt):
        raise value
    _refuse_halves(value, where)
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


def _refuse_halves(value: Any, where: str) -> None:
    """BadPrompt where the entry holds what UTF-8 cannot: a byte of another encoding, or half a surrogate pair."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        code = ord(error.object[error.start])
        if code in _UNDECODED:
            message = f"not UTF-8 (the byte {code - 0xDC00:#x}); save the file as UTF-8"
        else:
            message = f"half a character ({json.dumps(chr(code))}), which UTF-8 cannot hold"
        raise BadPrompt("encoding", where, message) from error


def _text(value: Any, where: str, max_characters: float) -> str:
    shown = json.dumps(value)[:80]
    if not isinstance(value, str):
        raise BadPrompt("malformed", where, f"the prompt is {shown}; a text that is not empty is expected")
    text = value.strip().strip("\ufeff").strip()  # marks where files were put together
    if is_blank(text):
        raise BadPrompt("empty", where, f"the prompt is {shown}; a text that is not empty is expected")
    for character in text:
        if unicodedata.category(character) == "Cc" and character not in _SPACES:
            message = f"the prompt is {shown}, with the control character {json.dumps(character)} in it"
            raise BadPrompt("encoding", where, message)
    if len(text) > max_characters:
        message = f"the prompt has {len(text)} characters, above prepare_prompts.max_characters: {max_characters}"
        raise BadPrompt("overlong", where, message)
    return text


def _typed(value: dict[str, Any], key: str, kind: type, where: str) -> Any:
    found = value.get(key)
    if found is not None and not isinstance(found, kind):
        message = f"{key} is {json.dumps(found)[:80]}; {kind.__name__} or null is expected"
        raise BadPrompt("malformed", where, message)
    return found
