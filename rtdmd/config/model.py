"""Sections `model` and `adapter`: the teacher, the student's base, the few-step sampler, and what is trained."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Literal

from pydantic import PrivateAttr, field_validator, model_validator

from rtdmd.common.hub_names import means_hub, require_hub_name
from rtdmd.common.section import Flag, Real, Section, Whole, param
from rtdmd.config.families import FAMILIES, TITLES

if TYPE_CHECKING:
    FamilyName = str
else:
    FamilyName = Literal[tuple(FAMILIES)]

_COMMIT = re.compile(r"[0-9a-f]{40}")


class StudentParams(Section):
    """The base of generator and reference, where it is not the teacher's: a transformer of the same shape."""

    model: str = param(
        "diffusers folder, or Hub id `owner/name` (a folder of two parts is written ./a/b)",
        source="generator_init_path in the public code's settings",
        min_length=1,
    )
    revision: str | None = param(
        "its Hub commit, 40 hex digits (all zero: to be filled in); null for a folder", source="Hugging Face Hub"
    )

    @model_validator(mode="after")
    def _check(self) -> StudentParams:
        _require_base("model", self.model, self.revision)
        return self


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
    student: StudentParams | None = param(
        "{model, revision} of the generator's and the reference's base; null: the teacher's",
        source="generator_init_path in the public code's settings, in those of FLUX.2 alone",
    )
    resolution: Whole = param(
        "side of the image, its height where it has a width of its own",
        unit="pixels",
        source="public code: 512, SD3-M 1024",
        ge=8,
    )
    width: Whole | None = param(
        "width of an image that is not square; null: resolution", unit="pixels", source="ours", ge=8
    )
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
    shift: Real | None = param(
        "s of the K levels s r / (1 + (s - 1) r), r = 1, (K - 1)/K, ..., 1/K; null: the teacher's scheduler's",
        source="ours; the scheduler's is 3 for SD3 and grows with the image for FLUX",
        ge=0.5,
        le=15,
    )
    eta: Real = param(
        "η, the stochasticity of CPS: 0 Euler, 1 full renoising",
        source="public code: 0.9 (arXiv 2509.05952)",
        ge=0,
        le=1,
    )

    _is_student: bool = PrivateAttr(default=False)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image [pixels]."""
        return self.resolution, self.width or self.resolution

    @property
    def size_text(self) -> str:
        """The image's size for texts: its side, or height x width."""
        return str(self.resolution) if self.width is None else f"{self.resolution} x {self.width}"

    @property
    def is_hub_id(self) -> bool:
        """True when `teacher` names a Hub repository rather than a local folder."""
        return means_hub(self.teacher)

    @property
    def key(self) -> str:
        """The setting that names the base, for messages: of what `of_student` gives it is the student's."""
        return "model.student.model" if self._is_student else "model.teacher"

    @property
    def pin(self) -> str:
        """The setting of the base's commit, for messages."""
        return "model.student.revision" if self._is_student else "model.revision"

    def of_student(self) -> ModelParams:
        """The model on which the student stands, as a section of its own without a second base: what samples, publishes
        and imports a student on its own needs. It is this section where ``student`` is null; else its ``teacher`` is
        the student's base, which is drawn without guidance."""
        if self.student is None:
            return self
        own = {"teacher": self.student.model, "revision": self.student.revision, "student": None, "guidance": 1.0}
        model = self.model_copy(update=own)
        model._is_student = True
        return model

    def bases(self) -> list[ModelParams]:
        """A section for each base: this one, and where it names a student's base, `of_student`."""
        return [self] if self.student is None else [self, self.of_student()]

    @field_validator("student", mode="before")
    @classmethod
    def _is_section(cls, given: Any) -> Any:
        if given is not None and not isinstance(given, dict | StudentParams):
            raise ValueError("allowed: null, or {model: owner/name or a folder, revision: its commit or null}")
        return given

    @model_validator(mode="after")
    def _check(self) -> ModelParams:
        _require_base("teacher", self.teacher, self.revision)
        if self.width == self.resolution:
            raise ValueError(f"width: {self.width} with resolution: {self.resolution}, a square; allowed: null")
        if self.shift is not None and self.num_steps == 1:
            raise ValueError(f"shift: {self.shift:g} with num_steps: 1, whose only level is 1; allowed: null")
        student = self.student
        if student is not None and (student.model, student.revision) == (self.teacher, self.revision):
            raise ValueError(f"student: {student.model!r} is the teacher, which would be held twice; allowed: null")
        return self


def _require_base(key: str, name: str, revision: str | None) -> None:
    """ValueError, which names ``key`` or its revision, unless a base is a folder, or a Hub id with its commit."""
    require_hub_name(key, name)
    if means_hub(name) and (revision is None or not _COMMIT.fullmatch(revision)):
        raise ValueError(
            f"revision: {revision!r} with the Hub id {name!r}; allowed: the 40 hex digits of a commit"
            f" (a local folder of that name is written ./{name})"
        )
    if not means_hub(name) and revision is not None:
        raise ValueError(f"revision: {revision!r} with the folder {name!r}; allowed: null")


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
