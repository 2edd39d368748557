"""Sections `model` and `adapter`: the teacher, the few-step sampler on it, and what is trained."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Literal

from pydantic import model_validator

from rtdmd.common.hub_names import means_hub, require_hub_name
from rtdmd.common.section import Flag, Real, Section, Whole, param
from rtdmd.config.families import FAMILIES, TITLES

if TYPE_CHECKING:
    FamilyName = str
else:
    FamilyName = Literal[tuple(FAMILIES)]

_COMMIT = re.compile(r"[0-9a-f]{40}")


class ModelParams(Section):
    """The teacher and the K-step sampler of its students."""

    family: FamilyName = param(f"backbone family: {TITLES}", source="diffusers")
    teacher: str = param(
        "diffusers folder, or Hub id `owner/name` (a folder of two parts is written ./a/b)",
        source="diffusers",
        min_length=1,
    )
    revision: str | None = param(
        "Hub commit of the teacher, 40 hex digits (all zero: to be filled in); null for a folder",
        source="Hugging Face Hub",
    )
    resolution: Whole = param("side of the image", unit="pixels", source="public code: 512, SD3-M 1024", ge=8)
    dtype: Literal["float32", "bfloat16"] = param("of the frozen base weights", source="public code: bfloat16 on GPU")
    guidance: Real = param(
        "teacher's guidance weight: classifier-free, or FLUX.1's distilled input",
        source="public code: SD3-M 7.0, SD3.5-M 4.5, FLUX.1 3.5, FLUX.2 4.0; the world's measured",
        ge=1,
    )
    teacher_steps: Whole = param(
        "Euler steps of the multi-step teacher",
        unit="steps",
        source="paper: SD3-M 50, FLUX.2 50; model cards: SD3.5-M 40, FLUX.1 50",
        ge=1,
    )
    max_sequence_length: Whole = param(
        "tokens of T5 or Qwen3",
        unit="tokens",
        source="public code: SD3 128 (diffusers 256), FLUX 512; the world has no T5",
        ge=1,
        le=512,
    )
    num_steps: Whole = param("K, steps of the few-step sampler", unit="steps", source="paper and public code: 4", ge=1)
    eta: Real = param(
        "CPS noise level: 0 Euler, 1 full renoising", source="public code: 0.9 (arXiv 2509.05952)", ge=0, le=1
    )

    @property
    def is_hub_id(self) -> bool:
        """True when `teacher` names a Hub repository rather than a local folder."""
        return means_hub(self.teacher)

    @model_validator(mode="before")
    @classmethod
    def _one_base(cls, given: Any) -> Any:
        """Said here because the public code has it (generator_init_path), and "unknown key" would not say why."""
        if isinstance(given, dict) and "student" in given:
            raise ValueError(
                f"student: {given['student']!r} is not available: generator, fake score and teacher are adapters on one"
                " base, model.teacher (docs/backbones.md says what a second base would cost); remove the key"
            )
        return given

    @model_validator(mode="after")
    def _check(self) -> ModelParams:
        require_hub_name("teacher", self.teacher)
        if self.is_hub_id and (self.revision is None or not _COMMIT.fullmatch(self.revision)):
            raise ValueError(
                f"revision: {self.revision!r} with the Hub id {self.teacher!r}; allowed: the 40 hex digits of a commit"
                f" (a local folder of that name is written ./{self.teacher})"
            )
        if not self.is_hub_id and self.revision is not None:
            raise ValueError(f"revision: {self.revision!r} with the folder {self.teacher!r}; allowed: null")
        return self


class AdapterParams(Section):
    """What is trained on top of the teacher's transformer."""

    mode: Literal["lora", "full"] = param("train an adapter or all weights", source="public code: lora")
    rank: Whole = param("LoRA rank (lora only)", source="public code: 32; paper v1: 64", ge=1)
    alpha: Whole = param(
        "LoRA alpha; the update is scaled by alpha / rank", source="public code: 64; paper v1: 32", ge=1
    )
    targets: Literal["attention", "attention_mlp", "all"] = param(
        "which linear layers carry LoRA", source="public code: attention; all: ours, for the world"
    )
    gradient_checkpointing: Flag = param(
        "compute each block again in the backward pass: less memory, a third more time", source="ours"
    )
