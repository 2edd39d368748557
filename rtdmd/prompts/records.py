"""Prompts: the one JSONL schema in which every later stage reads them, and how the sets are made from sources.

A line is {"id": int, "prompt": str, "tag": str | null, "metadata": {...} | null, "set": str, "times": int}. Ids run
through the training sets and then the evaluation sets, so that an id names one prompt of one set of a run; noise is
keyed by it. Where sources are read: `rtdmd.prompts.sources`.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
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
    """One prompt with what a verifier needs to know about it (GenEval-format metadata), if anything, the name of its
    set, and how many times the set's sources have it."""

    id: int
    prompt: str
    tag: str | None = None
    metadata: dict[str, Any] | None = None
    set: str = ""
    times: int = 1

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

    def __init__(self, reason: str, where: str, message: str):
        super().__init__(f"{where}: {message}")
        self.reason = reason
        self.where = where
        self.message = message


class ErrorPolicy:
    """What becomes of faulty prompts: the first one stops everything (``drop`` false), or all are dropped and kept
    on record."""

    def __init__(self, drop: bool = False):
        self.drop = drop
        self.dropped: list[dict[str, str]] = []

    def add(self, bad: BadPrompt) -> None:
        """Raise ``bad``, or record that it was dropped."""
        if not self.drop:
            raise bad
        self.dropped.append({"where": bad.where, "reason": bad.reason, "message": bad.message})


@dataclass(frozen=True)
class PromptSet:
    """The prompts of one set.

    ``ids``: for each source of the set, in order, the first id of its prompts and the one after its last;
    ``duplicates``: repeated prompts left out, likewise.
    """

    prompts: list[Prompt]
    ids: list[tuple[int, int]]
    duplicates: list[int]


Groups = Sequence[Sequence[Source]]  # a set: the prompts of each of its sources
_KINDS: dict[str, tuple[type, ...]] = {"id": (int,), "prompt": (str,), "tag": (str, type(None))}
_KINDS |= {"metadata": (dict, type(None)), "set": (str,), "times": (int,)}


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts of a file that prepare_prompts wrote. UserError where it did not."""
    prompts = []
    for row in read_jsonl(path):
        kinds = {key: type(value) for key, value in row.items()}
        if kinds.keys() != _KINDS.keys() or any(kinds[key] not in allowed for key, allowed in _KINDS.items()):
            raise UserError(
                f"{path}: a line is not a prompt: {json.dumps(row)[:80]}; `rtdmd prepare_prompts` makes it anew"
            )
        prompts.append(Prompt(**row))
    return prompts


def read_set(path: Path, name: str) -> list[Prompt]:
    """The prompts of the set ``name`` of such a file. UserError where it has none."""
    found = [prompt for prompt in read_prompts(path) if prompt.set == name]
    if not found:
        raise UserError(f"{path}: no prompt of the set {name}; `rtdmd prepare_prompts` makes it anew")
    return found


def by_tag(prompts: Sequence[Prompt]) -> list[list[Prompt]]:
    """The prompts of each tag, in the order of the tags' first appearance."""
    own: dict[str | None, list[Prompt]] = {}
    for prompt in prompts:
        own.setdefault(prompt.tag, []).append(prompt)
    return list(own.values())


def first_prompts(prompts: Sequence[Prompt], count: int | None) -> list[Prompt]:
    """``count`` prompts (None: all), taken from all tags in turn, in the order in which they stand."""
    if count is None:
        return list(prompts)
    columns = by_tag(prompts)
    depth = max(len(column) for column in columns)
    ranked = [column[k].id for k in range(depth) for column in columns if k < len(column)]
    chosen = set(ranked[:count])
    return [prompt for prompt in prompts if prompt.id in chosen]


def is_blank(text: str) -> bool:
    """True where nothing of a text is to be seen: spaces, and characters without a shape."""
    return all(character.isspace() or _IGNORABLE.match(character) for character in text)


def comparable(prompt: str) -> str:
    """A prompt as encoders tell prompts apart: two that differ in case, spaces, composed or decomposed letters (NFC and
    NFD), letters of another width (NFKC) or characters without a shape are one to at least one of the teachers' text
    encoders, or look the same to a reader."""
    return " ".join(_IGNORABLE.sub("", unicodedata.normalize("NFKC", prompt)).lower().split())


def make_sets(
    training: Mapping[str, Groups], evaluation: Mapping[str, Groups], policy: Mapping[str, ErrorPolicy]
) -> dict[str, PromptSet]:
    """Leave out what is repeated in a set, check that no training set has an evaluation prompt, and number all prompts:
    the training sets', then the evaluation sets', in the order given. faults: of each set.

    Faulty are a prompt that comes with two different tags or metadata in one set (the later one), and a training prompt
    that is also in an evaluation set, which stays whole; that is compared by `comparable`. Two sets of one kind may
    share prompts. UserError where nothing is left of a set.
    """
    kept: dict[str, list[list[Source]]] = {}
    times: dict[str, Counter[str]] = {}
    repeated: dict[str, list[int]] = {}
    for name, groups in (*evaluation.items(), *training.items()):
        kept[name], repeated[name], times[name] = _distinct(groups, policy[name])
    held_out: dict[str, tuple[str, Source]] = {}
    for name in evaluation:
        for source in _flat(kept[name]):
            held_out.setdefault(comparable(source.prompt), (name, source))
    for name in training:
        kept[name] = _apart(name, kept[name], held_out, policy[name])
    first = 0
    sets = dict[str, PromptSet]()
    for name in (*training, *evaluation):
        ids = []
        prompts = [
            Prompt(first + i, source.prompt, source.tag, source.metadata, name, times[name][source.prompt])
            for i, source in enumerate(_flat(kept[name]))
        ]
        if not prompts:
            raise UserError(f"prepare_prompts.sets.{name}: no prompt is left; see its sources in params.yaml")
        for group in kept[name]:
            ids.append((first, first + len(group)))
            first += len(group)
        sets[name] = PromptSet(prompts, ids, repeated[name])
    return sets


def _flat(groups: Groups) -> list[Source]:
    return [source for group in groups for source in group]


def _distinct(groups: Groups, policy: ErrorPolicy) -> tuple[list[list[Source]], list[int], Counter[str]]:
    """First occurrence of each prompt, in order and by source, the number of repetitions in each source, and how many
    times each prompt is there."""
    seen: dict[str, Source] = {}
    times: Counter[str] = Counter()
    kept: list[list[Source]] = []
    repeated = []
    for group in groups:
        kept.append([])
        repeated.append(0)
        for source in group:
            first = seen.setdefault(source.prompt, source)
            if (first.tag, first.metadata) != (source.tag, source.metadata):
                message = f"the prompt {source.prompt!r} has other metadata than at {first.where}"
                policy.add(BadPrompt("conflict", source.where, message))
                continue
            times[source.prompt] += 1
            if first is source:
                kept[-1].append(source)
            else:
                repeated[-1] += 1
    return kept, repeated, times


def _apart(
    name: str, groups: Groups, held_out: Mapping[str, tuple[str, Source]], policy: ErrorPolicy
) -> list[list[Source]]:
    """Prompts of the training set ``name`` that are in no evaluation set; the others are faults. held_out: the
    evaluation prompts, each with the name of its set, by what makes them comparable."""
    kept: list[list[Source]] = []
    shared = []
    for group in groups:
        kept.append([])
        for source in group:
            found = held_out.get(comparable(source.prompt))
            if found is None:
                kept[-1].append(source)
            else:
                shared.append((source, *found))
    more = "" if policy.drop or len(shared) < 2 else f" ({len(shared) - 1} more of its prompts are in evaluation sets)"
    for source, other_name, other in shared:
        alike = "" if source.prompt == other.prompt else f" as {other.prompt!r}"
        message = (
            f"the prompt {source.prompt!r} of the training set {name} is also at {other.where}, in the evaluation set"
            f" {other_name}{alike}"
        )
        then = "take it out of one, or set prepare_prompts.on_bad: drop, which trains without it"
        policy.add(BadPrompt("overlap", source.where, f"{message}; {then}{more}"))
    return kept
