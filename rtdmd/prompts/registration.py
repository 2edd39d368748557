"""What a source's file registers: its settings, how it is read, what its prompts carry.

A file in rtdmd/prompts/sources assigns one `Registration` to ``SOURCE``; params.yaml, prepare_prompts, `rtdmd plan` and
the tests find it there. The configuration imports these files, so torch is imported inside their functions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import model_validator

from rtdmd.common.hub_names import HUB_NAME_RULE, is_owner_and_name
from rtdmd.common.section import Section, param
from rtdmd.prompts.records import ErrorPolicy, Source

PROMPT_FILES = "data/prompts"
"""The folder of local prompt files: the one that dvc.yaml declares, so that both engines see a change in it."""

_COMMIT = re.compile(r"[0-9a-f]{40}")


class SourceParams(Section):
    """One source of prompts. The name is everybody's key; a source's own class adds its own."""

    name: str = param("what it is", source="a file of rtdmd/prompts/sources")


class FileParams(SourceParams):
    """A source that is a file: a local one, or one of a Hub data set."""

    path: str = param(
        "file below data/prompts, or the file's name in `repo` (.txt, .json, .jsonl, .csv, .tsv)", source="ours"
    )
    repo: str | None = param("Hub data set `owner/name`; null: a local file", source="Hugging Face Hub", default=None)
    revision: str | None = param("commit of the Hub data set, 40 hex digits", source="Hugging Face Hub", default=None)

    @model_validator(mode="after")
    def _check(self) -> FileParams:
        inside = PurePosixPath(self.path)
        if self.repo is None and (not inside.is_relative_to(PROMPT_FILES) or ".." in inside.parts):
            raise ValueError(f"path: {self.path!r}; allowed: a file below {PROMPT_FILES}/, which dvc.yaml declares")
        if self.repo is None and self.revision is not None:
            raise ValueError(f"revision: {self.revision!r} without repo; allowed: null")
        if self.repo is not None and not is_owner_and_name(self.repo):
            raise ValueError(f"repo: {self.repo!r}; allowed: owner/name, {HUB_NAME_RULE}")
        if self.repo is not None and not _COMMIT.fullmatch(self.revision or ""):
            raise ValueError(f"revision: {self.revision!r}; allowed: the 40 hex digits of a commit")
        return self


@dataclass(frozen=True)
class Reading:
    """What a source gets besides its settings.

    key: its entry in params.yaml, for messages: prepare_prompts.sets.train[0].
    input: the path of a file below the declared folder; UserError where it is missing.
    seed: of the run. max_characters: of a prompt. faults: where faulty prompts go.
    held_out: the prompts of all evaluation sets, for a source of a training set; else nothing.
    """

    key: str
    input: Callable[[str], Path]
    seed: int
    max_characters: int
    policy: ErrorPolicy
    held_out: Sequence[Source] = ()


Facts = dict[str, Any]


Row = dict[str, Any]


def _one(_: Any) -> int:
    return 1


def _bare(source: Source) -> list[Row]:
    return [{"prompt": source.prompt}]


@dataclass(frozen=True)
class Registration:
    """A source of prompts, as its file hands it to the package.

    settings: the keys of its entry in params.yaml; its ``name`` is the file's.
    read: (prompts in order, what sources.json says of them beside the keys) of an entry. Raises UserError where
        nothing can be read; faulty prompts go to ``reading.policy``. The same entry and seed give the same prompts.
    provides: rewards whose metadata every prompt of it carries.
    tags: how many tags the prompts of an entry have, for `rtdmd plan`.
    published: for `rtdmd rehearse`, of a source that is a file: the rows of the published file about a prompt that is
        made up, with its GenEval record as metadata (`rtdmd.prompts.generate`).
    """

    settings: type[SourceParams]
    read: Callable[[Any, Reading], tuple[list[Source], Facts]]
    provides: tuple[str, ...] = ()
    tags: Callable[[Any], int] = _one
    published: Callable[[Source], list[Row]] = _bare

    @property
    def sets_tags(self) -> bool:
        """Whether the source gives its prompts their tags itself."""
        return self.tags is not _one
