"""Sections `prepare_prompts` and `cache_teacher`: what the models are asked for, and the teacher's text
conditioning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Union

from pydantic import Field

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


class PreparePromptsParams(Section):
    """Where the prompts come from."""

    train: tuple[PromptSource, ...] = param("sources of training prompts", source="ours", min_length=1)
    eval: tuple[PromptSource, ...] = param(
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
