"""Stand-ins of the prompt files that params.yaml names: made-up prompts in the columns and records of the real ones.

What a source's rows look like is in its own file (`rtdmd.prompts.registration.Registration.published`); what the
rewards of a set need beside that comes from the source that provides it.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from rtdmd.common.files import write_atomic
from rtdmd.config import Params
from rtdmd.config.prompt_needs import scored_sets
from rtdmd.prompts.generate import generated_sources
from rtdmd.prompts.records import Source
from rtdmd.prompts.registration import FileParams, Row
from rtdmd.prompts.registry import SOURCES
from rtdmd.prompts.tables import SEPARATORS
from rtdmd.rehearse.stand_in import StandIn
from rtdmd.rewards.geneval_rules import CLASSES, TAGS
from rtdmd.world.grammar import captions_of

BARE = "color_attr"  # the tag of which there are most
DETAILED = ("geneval", "geneval2", "ocr")  # rewards that look at what a prompt names
PROMPTS = 48
"""In every file; those whose rewards look at what a prompt names have as many of each tag."""
_LONG = ", seen from above in the evening light" * 12  # beyond the 77 tokens that CLIP reads


@dataclass(frozen=True)
class File:
    """A file of prompts: the names of the sources that read it, and of the rewards that score its prompts."""

    path: str
    trained: bool
    sources: tuple[str, ...]
    rewards: tuple[str, ...]

    @property
    def is_tagged(self) -> bool:
        provided = {reward for name in self.sources for reward in SOURCES[name].provides}
        return not provided.isdisjoint(DETAILED) or not set(self.rewards).isdisjoint(DETAILED)


def stand_ins(params: Params) -> list[StandIn]:
    """Of every file, the user's own or a Hub data set's, of the sets that a stage names; a data set with all its files.

    No prompt is in two of them, and none is one that `generated` or GenEval's own files can have, so that training and
    evaluation stay apart whichever files are real. A file of the user's that is there is not to be replaced.
    """
    found: list[StandIn] = []
    data_sets: dict[tuple[str, str | None], dict[str, str]] = {}
    files = _files(params)
    prompts = _made_up([file for _, file in files], params.prepare_prompts.max_characters)
    for ((repo, revision), file), sources in zip(files, prompts, strict=True):
        text = file_text(file, sources)
        if repo is None:
            departs = f"which prompts {file.path} has, where it is not there yet: {len(sources)} made-up ones stand in"
            found.append(StandIn(file.path, None, "file", False, partial(write_atomic, data=text), departs))
        else:
            data_sets.setdefault((repo, revision), {})[file.path] = text
    for (repo, revision), texts in data_sets.items():
        departs = f"which prompts {' and '.join(texts)} of {repo} has: made-up ones stand in"
        found.append(StandIn(repo, revision, "dataset", False, partial(_write_files, texts), departs))
    return found


def _files(params: Params) -> list[tuple[tuple[str | None, str | None], File]]:
    """(data set, commit) and file of every file, each once, whichever sets and sources name it."""
    scorers: dict[str, list[str]] = {}
    for _, name, rewards in scored_sets(params):
        scorers.setdefault(name, []).extend(reward.name for reward in rewards)
    files: dict[tuple[str | None, str | None, str], File] = {}
    for name in (*params.training_sets, *params.evaluation_sets):
        for source in params.prepare_prompts.sets[name]:
            if not isinstance(source, FileParams):
                continue
            key = source.repo, source.revision, source.path
            known = files.get(key, File(source.path, name in params.training_sets, (), ()))
            sources = _each((*known.sources, source.name))
            files[key] = replace(known, sources=sources, rewards=_each((*known.rewards, *scorers.get(name, ()))))
    return [((repo, revision), file) for (repo, revision, _), file in files.items()]


def _each(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


def _made_up(files: Sequence[File], max_characters: int) -> list[list[Source]]:
    """The prompts of each file, with GenEval's records; the drawing goes on from file to file."""
    tagged = sum(file.is_tagged for file in files)
    of_tag = min(PROMPTS // len(TAGS), len(CLASSES) // max(tagged, 1))  # a single object is one of so many prompts
    counts = dict.fromkeys(TAGS, of_tag * tagged)
    counts[BARE] += PROMPTS * (len(files) - tagged)
    drawn: dict[str, list[Source]] = {tag: [] for tag in TAGS}
    for source in generated_sources(counts, 0, ()):
        image = source.prompt.replace("a photo of", "an image of", 1)
        drawn[str(source.tag)].append(replace(source, prompt=image))
    made = []
    for file in files:
        if "world_verifier" in file.rewards:
            split = "train" if file.trained else "heldout"
            made.append([Source(c.prompt, c.tag, c.metadata(), file.path) for c in captions_of(split)[:PROMPTS]])
        elif file.is_tagged:
            made.append([drawn[tag].pop() for tag in TAGS for _ in range(of_tag)])
        else:
            made.append(_of_all_kinds([drawn[BARE].pop() for _ in range(PROMPTS)], max_characters))
    return made


def _of_all_kinds(sources: list[Source], max_characters: int) -> list[Source]:
    """The same, one with letters beyond ASCII, and one longer than CLIP reads."""
    first, second, third, *others = sources
    second = replace(second, prompt=f"{second.prompt} — “naïve” art ✨"[:max_characters])
    third = replace(third, prompt=f"{third.prompt}{_LONG}"[:max_characters])
    return [first, second, third, *others]


def file_text(file: File, sources: Sequence[Source]) -> str:
    """The file with these prompts, of which it has the first one twice, as public files repeat some."""
    rows = [row for source in (*sources, sources[0]) for row in _rows(file, source)]
    suffix = PurePosixPath(file.path).suffix
    if suffix in SEPARATORS:
        return _table(rows, SEPARATORS[suffix])
    if suffix == ".json":
        return json.dumps(rows, ensure_ascii=False, indent=1) + "\n"
    lines = [json.dumps(row, ensure_ascii=False) if suffix == ".jsonl" else str(row["prompt"]) for row in rows]
    return "".join(f"{line}\n" for line in lines)


def _rows(file: File, source: Source) -> list[Row]:
    """The rows about one prompt, in the form of the file's first source, with what its rewards need beside it."""
    first = SOURCES[file.sources[0]]
    more: Row = {}
    owed = [name for name in file.rewards if name not in first.provides]
    owed += [name for other in file.sources[1:] for name in SOURCES[other].provides]
    for reward in owed:
        for provider in SOURCES.values():
            if reward in provider.provides and issubclass(provider.settings, FileParams):
                row = provider.published(source)[0]
                source = replace(source, prompt=row["prompt"])
                more |= row
    if "world_verifier" in owed:
        more |= source.metadata or {}
    more.pop("prompt", None)
    rows = [more | row for row in first.published(source)]
    table = PurePosixPath(file.path).suffix in SEPARATORS
    return rows if table else [{"prompt": source.prompt} | row for row in rows]


def _table(rows: Sequence[Row], separator: str) -> str:
    """A header and the rows; in a .tsv quotes are text."""
    cells = [list(rows[0])]
    for row in rows:
        cells.append([_cell(value) for value in row.values()])
    if separator == "\t":
        return "".join("\t".join(line) + "\n" for line in cells)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(cells)
    return text.getvalue()


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _write_files(texts: Mapping[str, str], folder: Path) -> None:
    for name, text in texts.items():
        write_atomic(folder / name, text)
