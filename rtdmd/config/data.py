"""Sections `prepare_prompts` and `cache_teacher`: what the models are asked for, and the teacher's text
conditioning."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Any, Literal

from pydantic import model_validator

from rtdmd.common.section import Flag, Real, Section, Whole, param

PROMPT_FILES = "data/prompts"
"""The folder of local prompt files: the one that dvc.yaml declares, so that both engines see a change in it."""

GENERATED_TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_KEYS = {"world": ("split",), "generated": ("tags",)}  # of a source; every other name is a file


class PromptSourceParams(Section):
    """One source of prompts: the world's captions, prompts made here, or a file (local, or of a Hub dataset)."""

    name: Literal["world", "generated", "prompts", "pickscore", "drawbench", "hpsv3", "geneval", "geneval2", "ocr"] = (
        param("what it is; a file's name says what its lines must hold", source="docs/prompts.md")
    )
    split: Literal["train", "heldout"] | None = param("world: which captions", source="ours", default=None)
    tags: dict[str, Whole] | None = param("generated: prompts per GenEval tag", source="ours", default=None)
    path: str | None = param(
        "file: below data/prompts, or the file's name in `repo` (.txt, .json, .jsonl, .csv, .tsv)",
        source="ours",
        default=None,
    )
    repo: str | None = param("Hub dataset `owner/name`; null: a local file", source="Hugging Face Hub", default=None)
    revision: str | None = param("commit of the Hub dataset, 40 hex digits", source="Hugging Face Hub", default=None)

    @model_validator(mode="after")
    def _check(self) -> PromptSourceParams:
        given = {key for key in ("split", "tags", "path", "repo", "revision") if getattr(self, key) is not None}
        hub = ("path", "repo", "revision") if given & {"repo", "revision"} else ("path",)
        wanted = _KEYS.get(self.name, hub)
        for key in sorted(given ^ set(wanted)):
            value: Any = getattr(self, key)
            raise ValueError(f"{key}: {value!r} with name: {self.name}; its keys are {', '.join(wanted)}")
        self._check_tags()
        self._check_file()
        return self

    def _check_tags(self) -> None:
        for tag, count in (self.tags or {}).items():
            if tag not in GENERATED_TAGS or count < 1:
                raise ValueError(f"tags: {tag}: {count}; allowed: at least 1 of {', '.join(GENERATED_TAGS)}")
        if self.tags == {}:
            raise ValueError(f"tags: {{}}; allowed: at least 1 of {', '.join(GENERATED_TAGS)}")

    def _check_file(self) -> None:
        if self.path is None:
            return
        inside = PurePosixPath(self.path)
        if self.repo is None and (not inside.is_relative_to(PROMPT_FILES) or ".." in inside.parts):
            raise ValueError(f"path: {self.path!r}; allowed: a file below {PROMPT_FILES}/, which dvc.yaml declares")
        if self.repo is not None and not _REPOSITORY.fullmatch(self.repo):
            raise ValueError(f"repo: {self.repo!r}; allowed: owner/name")
        if self.revision is not None and not _COMMIT.fullmatch(self.revision):
            raise ValueError(f"revision: {self.revision!r}; allowed: the 40 hex digits of a commit")


class PreparePromptsParams(Section):
    """Where the prompts come from."""

    train: tuple[PromptSourceParams, ...] = param("sources of training prompts", source="ours", min_length=1)
    eval: tuple[PromptSourceParams, ...] = param(
        "sources of evaluation prompts; none of them is trained on", source="ours", min_length=1
    )
    on_bad: Literal["error", "drop"] = param(
        "a faulty prompt (malformed, not UTF-8, empty, too long, conflicting, in both sets): stop, or drop and report",
        source="ours",
    )
    max_characters: Whole = param("a longer prompt is faulty", unit="characters", source="ours", ge=1)


class CacheTeacherParams(Section):
    """How prompts are embedded."""

    mode: Literal["cache", "on_the_fly"] = param(
        "embed all prompts once, or each batch while training (the text encoders then stay in memory)", source="ours"
    )
    batch_size: Whole = param("prompts per text-encoder batch", unit="prompts", source="ours", ge=1)
    storage_dtype: Literal["float32", "bfloat16"] = param(
        "of the stored embeddings", source="ours: that of model.dtype"
    )
    unpadded: Flag = param(
        "leave out what is zero for every prompt (SD3: half the width of CLIP's tokens)", source="ours"
    )
    budget_gib: Real = param("largest cache", unit="GiB", source="ours", gt=0)
