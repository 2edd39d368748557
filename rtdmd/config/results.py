"""Sections `evaluate`, `report` and `publish`: what is measured, shown and handed on."""

from __future__ import annotations

from typing import Literal

from pydantic import field_validator, model_validator

from rtdmd.common.hub_names import HUB_NAME_RULE, is_hub_name, is_owner_and_name
from rtdmd.common.parsing import did_you_mean
from rtdmd.common.section import Flag, Real, Section, Whole, param
from rtdmd.config.rewards import RewardEntry, distinct
from rtdmd.config.suites import SetParams, check_suites
from rtdmd.published import RUNS

ModelName = Literal["teacher", "teacher_few_step", "student_base", "imported", "train_acdmd", "train_rtdmd"]


class SuiteParams(SetParams):
    """A prompt set, and what is measured of every model's images for it."""

    images_per_tag: Whole | None = param(
        "images of each model per prompt tag, going round its prompts; null: images_per_prompt says",
        unit="images",
        source="ours",
        default=None,
        ge=1,
    )
    images_per_prompt: Whole | None = param(
        "images of each model per prompt; null: images_per_tag says",
        unit="images",
        source="public code: DrawBench 5, GenEval 4",
        default=None,
        ge=1,
    )
    max_prompts: Whole | None = param(
        "prompts of the set that are used, taken from all tags in turn; null: all",
        unit="prompts",
        source="public code: 64 while training, all for a table",
        default=None,
        ge=1,
    )
    reference_images: Whole | None = param(
        "real images, drawn for the world's held-out captions, behind the Fréchet distance; null: none",
        unit="images",
        source="ours",
        default=None,
        ge=2,
    )
    teacher_images: Whole | None = param(
        "images of the teacher with noise of their own, spread over the tags, from which the models' divergence is"
        " measured where world_verifier scores the suite; null: none",
        unit="images",
        source="ours",
        default=None,
        ge=1,
    )

    @model_validator(mode="after")
    def _check(self) -> SuiteParams:
        if (self.images_per_tag is None) == (self.images_per_prompt is None):
            given = "neither" if self.images_per_tag is None else "both"
            raise ValueError(f"images_per_tag, images_per_prompt: {given} given; allowed: one of the two")
        return self


class EvaluateParams(Section):
    """Suites of held-out prompts, equal seeds for every model."""

    suites: tuple[SuiteParams, ...] = param(
        "prompt sets to judge on, and how: docs/keys.md has the keys of an entry",
        source="public code: nine scorers on five sets",
        min_length=1,
    )
    batch_size: Whole = param("images per forward; changes no result", unit="images", source="ours", ge=1)
    models: tuple[ModelName, ...] = param(
        "what is evaluated; student_base: what model.student names, as released; imported: the folder of that key",
        source="paper, table 2: teachers, released few-step models, students",
        min_length=1,
    )
    imported: str | None = param(
        "folder of weights that `rtdmd import` or `rtdmd publish` wrote, judged as the model `imported`; null: none",
        source="ours",
    )
    etas: tuple[Real, ...] = param(
        "values of η at which the student of stage two is scored besides model.eta; the card prints them",
        source="ours: what diffusers' own scheduler can do, 0 and 1",
    )
    rewards: tuple[RewardEntry, ...] = param(
        "scorers, each once and loaded once; a suite names those that score it", source="ours", min_length=1
    )
    features_model: str | None = param(
        "CLIPModel folder whose image embedding measures Fréchet distance and diversity; null: neither", source="ours"
    )

    _distinct = field_validator("rewards")(distinct)

    @model_validator(mode="after")
    def _check(self) -> EvaluateParams:
        if len(set(self.models)) != len(self.models):
            raise ValueError(f"models: {list(self.models)}; allowed: each model once")
        if len(set(self.etas)) != len(self.etas) or not all(0 <= eta <= 1 for eta in self.etas):
            raise ValueError(f"etas: {list(self.etas)}; allowed: numbers from 0 to 1, each once")
        if self.etas and "train_rtdmd" not in self.models:
            raise ValueError(f"etas: {list(self.etas)} without train_rtdmd in models; allowed: []")
        if ("imported" in self.models) != (self.imported is not None):
            allowed = "null" if self.imported is not None else "a folder that `rtdmd import` wrote"
            has = "with" if "imported" in self.models else "without"
            raise ValueError(f"imported: {self.imported!r} {has} imported in models; allowed: {allowed}")
        check_suites(self.suites, self.rewards, "evaluate")
        return self


class ReportParams(Section):
    """The page."""

    title: str = param("heading of the page", source="ours", min_length=1)
    experiment: str | None = param(
        "the published run whose figures stand beside these (`rtdmd experiments` lists them); null: none", source="ours"
    )
    grid_prompts: Whole = param("prompts in the picture of the grids", unit="prompts", source="ours", ge=1)

    @field_validator("experiment")
    @classmethod
    def _known(cls, name: str | None) -> str | None:
        if name is not None and name not in RUNS:
            raise ValueError(f"allowed: null, {', '.join(RUNS)}{did_you_mean(name, RUNS)}")
        return name


class PublishParams(Section):
    """The model folder, and where it would go."""

    format: Literal["lora", "merged", "both"] = param(
        "weights: one adapter, the whole transformer with the adapters merged in, or both"
        " (adapter.mode full: merged); dvc.yaml lists the files",
        source="ours",
    )
    prompt: str = param("of the card's example and its picture", source="ours", min_length=1)
    datasets: tuple[str, ...] = param("Hub ids of the training prompts' data sets, for the card", source="ours")
    repo_id: str | None = param("Hub repository `owner/name`; null: write the folder only", source="Hugging Face Hub")
    private: Flag = param("create the repository as private", source="ours")
    dry_run: Flag = param("write the folder, upload nothing", source="ours")

    @model_validator(mode="after")
    def _check(self) -> PublishParams:
        if self.repo_id is not None and not is_owner_and_name(self.repo_id):
            raise ValueError(f"repo_id: {self.repo_id!r}; allowed: owner/name, {HUB_NAME_RULE}, or null")
        for name in self.datasets:
            if not is_hub_name(name):
                raise ValueError(f"datasets: {name!r}; allowed: owner/name, or the name alone, {HUB_NAME_RULE}")
        if not self.dry_run and self.repo_id is None:
            raise ValueError("repo_id: None with dry_run: false; allowed: owner/name")
        return self
