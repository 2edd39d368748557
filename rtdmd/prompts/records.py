"""Prompts: the one JSONL schema in which every later stage reads them, and how the two sets are made from sources.

A line is {"id": int, "prompt": str, "tag": str | null, "metadata": {...} | null}. Ids run through training and then
evaluation prompts, so that an id names one prompt of a run; noise is keyed by it. Where sources are read:
`rtdmd.prompts.sources`.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rtdmd.common.errors import UserError
from rtdmd.common.files import read_jsonl

_IGNORABLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u2800\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
"""Characters without a shape of their own (Unicode's default ignorable code points, blank braille)."""


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


class BadPrompt(UserError):
    """A prompt that cannot be used. ``reason``: one word to count it by; ``where``: its file and line."""

    def __init__(self, reason: str, where: str, says: str):
        super().__init__(f"{where}: {says}")
        self.reason, self.where, self.says = reason, where, says


class Faults:
    """What becomes of faulty prompts: the first one stops everything (``drop`` false), or all are dropped and kept
    on record."""

    def __init__(self, drop: bool = False):
        self.drop = drop
        self.dropped: list[dict[str, str]] = []

    def add(self, bad: BadPrompt) -> None:
        """Raise ``bad``, or record that it was dropped."""
        if not self.drop:
            raise bad
        self.dropped.append({"where": bad.where, "reason": bad.reason, "says": bad.says})


@dataclass(frozen=True)
class PromptSets:
    """Training and evaluation prompts, disjoint.

    ``ids``: for each source of a set, in order, the first id of its prompts and the one after its last;
    ``duplicates``: repeated prompts left out, likewise.
    """

    train: list[Prompt]
    eval: list[Prompt]
    ids: dict[str, list[tuple[int, int]]]
    duplicates: dict[str, list[int]]


_KINDS = {"id": (int,), "prompt": (str,), "tag": (str, type(None)), "metadata": (dict, type(None))}


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts of a file that prepare_prompts wrote. UserError where it did not."""
    prompts = []
    for row in read_jsonl(path):
        kinds = {key: type(value) for key, value in row.items()}
        if kinds.keys() != _KINDS.keys() or any(kinds[key] not in allowed for key, allowed in _KINDS.items()):
            raise UserError(
                f"{path}: a line is no prompt: {json.dumps(row)[:80]}; `rtdmd prepare_prompts` makes it anew"
            )
        prompts.append(Prompt(**row))
    return prompts


def is_blank(text: str) -> bool:
    """True where nothing of a text is to be seen: spaces, and characters without a shape."""
    return all(character.isspace() or _IGNORABLE.match(character) for character in text)


def comparable(prompt: str) -> str:
    """A prompt as encoders tell prompts apart: two that differ in case, spaces, composed or decomposed letters (NFC and
    NFD), letters of another width (NFKC) or characters without a shape are one to at least one of the teachers' text
    encoders, or look the same to a reader."""
    return " ".join(_IGNORABLE.sub("", unicodedata.normalize("NFKC", prompt)).lower().split())


def make_sets(train: Sequence[Sequence[Source]], evaluation: Sequence[Sequence[Source]], faults: Faults) -> PromptSets:
    """Leave out repeated prompts, check that the two sets share none, and number them. Each set: a list of sources.

    Faulty are a prompt that comes with two different tags or metadata (the later one), and a training prompt that is
    also in the evaluation set, which stays whole; that is compared by `comparable`. UserError where nothing is left of
    a set.
    """
    kept_eval, repeated_eval = _distinct(evaluation, faults)
    kept_train, repeated_train = _distinct(train, faults)
    kept_train = _apart(kept_train, kept_eval, faults)
    for split, groups in (("training", kept_train), ("evaluation", kept_eval)):
        if not any(groups):
            raise UserError(f"prepare_prompts: no {split} prompt is left; see the sources in params.yaml")
    ids, first = [], 0
    for group in (*kept_train, *kept_eval):
        ids.append((first, first + len(group)))
        first += len(group)
    flat = [source for group in (*kept_train, *kept_eval) for source in group]
    prompts = [Prompt(i, source.prompt, source.tag, source.metadata) for i, source in enumerate(flat)]
    half, count = len(kept_train), sum(map(len, kept_train))
    return PromptSets(
        train=prompts[:count],
        eval=prompts[count:],
        ids={"train": ids[:half], "eval": ids[half:]},
        duplicates={"train": repeated_train, "eval": repeated_eval},
    )


def _distinct(groups: Sequence[Sequence[Source]], faults: Faults) -> tuple[list[list[Source]], list[int]]:
    """First occurrence of each prompt, in order and by source, and the number of repetitions in each source."""
    seen: dict[str, Source] = {}
    kept: list[list[Source]] = []
    repeated = []
    for group in groups:
        kept.append([])
        repeated.append(0)
        for source in group:
            first = seen.setdefault(source.prompt, source)
            if first is source:
                kept[-1].append(source)
            elif (first.tag, first.metadata) == (source.tag, source.metadata):
                repeated[-1] += 1
            else:
                says = f"the prompt {source.prompt!r} has other metadata than at {first.where}"
                faults.add(BadPrompt("conflict", source.where, says))
    return kept, repeated


def _apart(
    train: Sequence[Sequence[Source]], evaluation: Sequence[Sequence[Source]], faults: Faults
) -> list[list[Source]]:
    """Training prompts that are not in the evaluation set; the others are faults."""
    held_out = {comparable(source.prompt): source for group in evaluation for source in group}
    kept: list[list[Source]] = []
    shared = []
    for group in train:
        kept.append([])
        for source in group:
            other = held_out.get(comparable(source.prompt))
            if other is None:
                kept[-1].append(source)
            else:
                shared.append((source, other))
    more = "" if faults.drop or len(shared) < 2 else f" ({len(shared) - 1} more are in both sets)"
    for source, other in shared:
        alike = "" if source.prompt == other.prompt else f" as {other.prompt!r}"
        says = f"the prompt {source.prompt!r} (training) is also at {other.where} (evaluation){alike}"
        then = "take it out of one, or set prepare_prompts.on_bad: drop, which trains without it"
        faults.add(BadPrompt("overlap", source.where, f"{says}; {then}{more}"))
    return kept
