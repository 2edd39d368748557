"""Section `train_acdmd`: stage one, Ambient-Consistent Distribution Matching Distillation (DMD2 is reachable from
here)."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from rtdmd.common.section import Flag, Real, Whole, param
from rtdmd.config.recipes import StageOneRecipe, check_recipe
from rtdmd.config.training import INITIALISATION, Initialisation, TrainingParams


class TrainAcdmdParams(TrainingParams):
    """Stage one."""

    recipe: StageOneRecipe = param(
        "a method of `rtdmd methods` whose settings the section is held to; custom: none", source="ours"
    )
    iterations: Whole = param(
        "fake-score updates; 0: no training, stage two starts from model.student or the teacher as it is",
        unit="updates",
        source="public code: 15000",
        ge=0,
    )
    batch_size: Whole = param(
        "prompts per update, of all processes", unit="prompts", source="public code: 9 per GPU on 8 GPUs", ge=1
    )
    micro_batch: Whole = param(
        "prompts per forward pass; only memory and rounding depend on it", unit="prompts", source="public code: 9", ge=1
    )
    generator_every: Whole = param("fake-score updates per generator update", source="public code: 10", ge=1)
    warmup: Whole = param("updates of linear warm-up of both rates", unit="updates", source="public code: 0", ge=0)
    adapter_init: Initialisation = param(INITIALISATION, source="public code: gaussian; kaiming_uniform PEFT's default")
    ema_decay: Real = param("EMA decay of the generator weights", source="public code: 0.99", ge=0, lt=1)
    ema_per: Literal["generator_update", "iteration"] = param(
        "when the EMA is updated: with the generator, or also in the iterations in which it stays as it is",
        source="public code: iteration; generator_update ours",
    )
    renoise_from: Literal["step", "data"] = param(
        "renoise from the stopped step's level (AC-DMD) or from s = 0 (DMD2)", source="paper: step"
    )
    rollout_stop: Literal["random", "last"] = param(
        "last step of a rollout, the trained one: any of K, or always the K-th", source="paper and public code: random"
    )
    generator_rollout: Literal["shared", "own"] = param(
        "what the generator's turn learns from: the fake score's rollout and its velocity from before its update, or"
        " a rollout of its own with the fake score as just updated",
        source="public code: own; shared ours, cheaper (docs/evidence/oracle.md)",
    )
    fake_per_step: Flag = param(
        "one fake-score adapter for each stopping step, trained on its turn; stage two gets the last step's",
        source="paper and public code: false; true ours (docs/verification.md, T8)",
    )

    @model_validator(mode="after")
    def _check(self) -> TrainAcdmdParams:
        if self.processes > self.batch_size:
            raise ValueError(f"processes: {self.processes}; allowed: 1 to batch_size = {self.batch_size}")
        if self.iterations == 0 and self.watch.every > 0:
            raise ValueError(
                f"watch.every: {self.watch.every} with iterations: 0, so that nothing is ever watched; allowed: 0"
                " (train_rtdmd.watch evaluates the same student before its first epoch)"
            )
        if 0 < self.iterations < self.generator_every:
            raise ValueError(
                f"generator_every: {self.generator_every}, so the generator would never be trained;"
                f" allowed: 1 to iterations = {self.iterations}"
            )
        updates = self.iterations // self.generator_every
        if self.iterations and self.warmup > updates:
            raise ValueError(
                f"warmup: {self.warmup}, so that generator_optimizer.lr is never reached; allowed: 0 to {updates}, the"
                " generator's updates (iterations / generator_every)"
            )
        if self.fake_per_step and self.rollout_stop == "last":
            raise ValueError(
                "fake_per_step: true with rollout_stop: last, so that no fake score but the last step's is ever"
                " trained; allowed: false, or rollout_stop: random"
            )
        if self.fake_per_step and self.consistency.weight > 0:
            raise ValueError(
                f"consistency.weight: {self.consistency.weight} with fake_per_step: true; allowed: 0 (its earlier"
                " times belong to no step)"
            )
        check_recipe("train_acdmd", self.recipe, self.model_dump(mode="json"))
        return self
