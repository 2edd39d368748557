"""Sections `prepare_prompts` and `cache_teacher`: what the models are asked for, and the teacher's text
conditioning."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

from pydantic import Field, field_validator

from rtdmd.common.section import Flag, Real, Section, Whole, param
from rtdmd.prompts.registration import SourceParams
from rtdmd.prompts.registry import SOURCES

if TYPE_CHECKING:
    PromptSource = SourceParams
else:
    PromptSource = Annotated[
        Union[tuple(source.settings for source in SOURCES.values())],  # noqa: UP007  # a union of what was found
        Field(discriminator="name"),
    ]


_SET_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


class PreparePromptsParams(Section):
    """Where the prompts come from."""

    sets: dict[str, Annotated[tuple[PromptSource, ...], Field(min_length=1)]] = param(
        "sets of prompts by name, each a list of sources; what no stage names is not read", source="ours"
    )
    on_bad: Literal["error", "drop"] = param(
        "a faulty prompt (malformed, not UTF-8, empty, too long, conflicting, trained on and evaluated): stop, or drop"
        " and report",
        source="ours",
    )
    max_characters: Whole = param("a longer prompt is faulty", unit="characters", source="ours", ge=1)

    @field_validator("sets", mode="before")
    @classmethod
    def _named(cls, sets: Any) -> Any:
        for name in sets if isinstance(sets, dict) else ():
            if not isinstance(name, str) or not _SET_NAME.fullmatch(name):
                raise ValueError(f"{name!r} cannot be the name of a set; allowed: a letter, then letters, digits and _")
        return sets


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
