"""Sections `evaluate`, `report` and `publish`: what is measured, shown and handed on."""

from __future__ import annotations

from typing import Literal

from pydantic import field_validator, model_validator

from rtdmd.common.hub_names import HUB_NAME_RULE, is_hub_name, is_owner_and_name
from rtdmd.common.section import Flag, Real, Section, Whole, param
from rtdmd.config.rewards import RewardEntry, distinct

ModelName = Literal["teacher", "teacher_few_step", "train_acdmd", "train_rtdmd"]


class EvaluateParams(Section):
    """Held-out prompts, equal seeds for every model."""

    prompts: str = param("the set of prepare_prompts.sets that is evaluated, and never trained on", source="ours")
    images_per_tag: Whole = param("held-out images per prompt tag and model", unit="images", source="ours", ge=1)
    batch_size: Whole = param("images per forward; changes no result", unit="images", source="ours", ge=1)
    models: tuple[ModelName, ...] = param("what is evaluated", source="ours", min_length=1)
    etas: tuple[Real, ...] = param(
        "CPS noise levels at which the student of stage two is scored besides model.eta; the card prints them",
        source="ours: what diffusers' own scheduler can do, 0 and 1",
    )
    rewards: tuple[RewardEntry, ...] = param("scores reported, each once", source="ours", min_length=1)
    features_model: str | None = param(
        "CLIPModel folder whose image embedding measures Fréchet distance and diversity; null: neither", source="ours"
    )
    reference: Literal["world", "none"] = param(
        "real images to compare with: drawn for the held-out captions, or none", source="ours"
    )
    reference_images: Whole = param("reference images behind the Fréchet distance", unit="images", source="ours", ge=2)

    _distinct = field_validator("rewards")(distinct)

    @model_validator(mode="after")
    def _check(self) -> EvaluateParams:
        if len(set(self.models)) != len(self.models):
            raise ValueError(f"models: {list(self.models)}; allowed: each model once")
        if len(set(self.etas)) != len(self.etas) or not all(0 <= eta <= 1 for eta in self.etas):
            raise ValueError(f"etas: {list(self.etas)}; allowed: numbers from 0 to 1, each once")
        if self.etas and "train_rtdmd" not in self.models:
            raise ValueError(f"etas: {list(self.etas)} without train_rtdmd in models; allowed: []")
        return self


class ReportParams(Section):
    """The page."""

    title: str = param("heading of the page", source="ours", min_length=1)
    grid_prompts: Whole = param("prompts in the picture of the grids", unit="prompts", source="ours", ge=1)


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
