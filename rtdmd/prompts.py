"""Prompts: where they come from, and the one JSONL schema in which every later stage reads them.

A line is {"id": int, "prompt": str, "tag": str | null, "metadata": {...} | null}. Ids run through training and then
evaluation prompts, so that an id names one prompt of a run; noise is keyed by it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rtdmd.errors import UserError
from rtdmd.files import read_jsonl

SUFFIXES = (".txt", ".json", ".jsonl")


@dataclass(frozen=True)
class Prompt:
    """One prompt with what a verifier needs to know about it (GenEval-format metadata), if anything."""

    id: int
    prompt: str
    tag: str | None = None
    metadata: dict[str, Any] | None = None

    def row(self) -> dict[str, Any]:
        """The prompt as a line of a prompt file."""
        return asdict(self)


@dataclass(frozen=True)
class Source:
    """A prompt as it was read, before ids are given; ``where`` names its file and line in errors."""

    prompt: str
    tag: str | None
    metadata: dict[str, Any] | None
    where: str


@dataclass(frozen=True)
class PromptSets:
    """Training and evaluation prompts, disjoint, and how many duplicates were dropped from each."""

    train: list[Prompt]
    eval: list[Prompt]
    duplicates: dict[str, int]


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts of a file that prepare_prompts wrote."""
    return [Prompt(**row) for row in read_jsonl(path)]


def world_sources(split: str) -> list[Source]:
    """The embedded world's captions of ``split``: "train" or "heldout"."""
    from rtdmd.world.grammar import captions

    chosen = [caption for caption in captions() if caption.split == split]
    return [Source(c.prompt, c.tag, c.metadata(), f"the world's {split} captions") for c in chosen]


def file_sources(path: Path) -> list[Source]:
    """The prompts of a user's file; every fault is a UserError with file and line.

    .txt: one prompt a line. .json: a list, .jsonl: one a line, of strings or objects with "prompt" and, where there are
    any, "tag" and "metadata". An object with other keys (GenEval's include and exclude) is its own metadata.
    """
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path}: prompts are read from {', '.join(SUFFIXES)} files")
    lines = _lines(path)
    if path.suffix == ".txt":
        sources = [_source(line, f"{path}:{number}") for number, line in lines]
    elif path.suffix == ".jsonl":
        sources = [_source(_parse(line, f"{path}:{number}"), f"{path}:{number}") for number, line in lines]
    else:
        values = _parse("\n".join(line for _, line in lines), str(path))
        if not isinstance(values, list):
            raise UserError(f"{path}: a list of prompts is expected, got {type(values).__name__}")
        sources = [_source(value, f"{path}: item {number}") for number, value in enumerate(values, start=1)]
    if not sources:
        raise UserError(f"{path}: there is no prompt in it")
    return sources


def make_sets(train: Sequence[Source], evaluation: Sequence[Source]) -> PromptSets:
    """Drop repeated prompts, check that the two sets share none, and number them.

    UserError where one prompt comes with two different tags or metadata, or stands in both sets.
    """
    seen_train, seen_eval = _distinct(train), _distinct(evaluation)
    for prompt, source in seen_eval.items():
        if prompt in seen_train:
            both = f"{seen_train[prompt].where} (training) and {source.where} (evaluation)"
            raise UserError(f"the prompt {prompt!r} is in {both}; take it out of one, the sets must be disjoint")
    numbered = [
        Prompt(i, source.prompt, source.tag, source.metadata)
        for i, source in enumerate([*seen_train.values(), *seen_eval.values()])
    ]
    duplicates = {"train": len(train) - len(seen_train), "eval": len(evaluation) - len(seen_eval)}
    return PromptSets(numbered[: len(seen_train)], numbered[len(seen_train) :], duplicates)


def _distinct(sources: Sequence[Source]) -> dict[str, Source]:
    """First occurrence of each prompt, in order."""
    seen: dict[str, Source] = {}
    for source in sources:
        first = seen.setdefault(source.prompt, source)
        if (first.tag, first.metadata) != (source.tag, source.metadata):
            raise UserError(f"{source.where}: the prompt {source.prompt!r} has other metadata than at {first.where}")
    return seen


def _lines(path: Path) -> list[tuple[int, str]]:
    """(line number, line) of the lines that are not blank; UserError at the first line that is not UTF-8."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); see prepare_prompts in params.yaml") from error
    lines = []
    for number, raw in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        try:
            line = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{path}:{number}: not UTF-8 (byte {error.start + 1}); save the file as UTF-8") from error
        if line.strip():
            lines.append((number, line))
    return lines


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not JSON ({error.msg}, column {error.colno})") from error


def _source(value: Any, where: str) -> Source:
    """One entry of a file: a string, or an object with a prompt."""
    if isinstance(value, str):
        return Source(_text(value, where), None, None, where)
    if not isinstance(value, dict) or "prompt" not in value:
        raise UserError(f'{where}: a string or an object with "prompt" is expected, got {json.dumps(value)[:80]}')
    prompt = _text(value["prompt"], where)
    tag = _typed(value, "tag", str, where)
    if "metadata" in value:
        return Source(prompt, tag, _typed(value, "metadata", dict, where), where)
    own = set(value) - {"prompt", "tag", "id"}
    return Source(prompt, tag, {**value, "prompt": prompt} if own else None, where)


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{where}: the prompt is {json.dumps(value)[:80]}; a text that is not empty is expected")
    return value.strip()


def _typed(value: dict[str, Any], key: str, kind: Callable[..., Any], where: str) -> Any:
    found = value.get(key)
    if found is not None and not isinstance(found, kind):  # type: ignore[arg-type]
        raise UserError(f"{where}: {key} is {json.dumps(found)[:80]}; {kind.__name__} or null is expected")
    return found
