"""Sections `prepare_prompts` and `cache_teacher`: what the models are asked for, and the teacher's text
conditioning."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from rtdmd.config.base import Section, Whole, param


class PreparePromptsParams(Section):
    """Where the prompts come from."""

    source: Literal["world", "file"] = param("the embedded world's captions, or files of yours", source="ours")
    heldout: Literal["heldout"] = param("the world's split that evaluation uses", source="ours")
    train_file: str | None = param("training prompts (.txt, .json, .jsonl); only for source: file", source="ours")
    eval_file: str | None = param("evaluation prompts, disjoint from training; only for source: file", source="ours")

    @model_validator(mode="after")
    def _check(self) -> PreparePromptsParams:
        for key in ("train_file", "eval_file"):
            value = getattr(self, key)
            if self.source == "file" and value is None:
                raise ValueError(f"{key}: None with source: file; allowed: a .txt, .json or .jsonl file")
            if self.source == "world" and value is not None:
                raise ValueError(f"{key}: {value!r} with source: world; allowed: null")
        return self


class CacheTeacherParams(Section):
    """How prompts are embedded."""

    batch_size: Whole = param("prompts per text-encoder batch", unit="prompts", source="ours", ge=1)
