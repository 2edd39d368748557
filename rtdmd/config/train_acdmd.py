"""Section `train_acdmd`: stage one, Ambient-Consistent Distribution Matching Distillation (DMD2 is reachable from
here)."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from rtdmd.common.section import Flag, Real, Section, Whole, param
from rtdmd.config.recipes import StageOneRecipe, check_recipe


class RenoiseParams(Section):
    """The renoising time t ~ U(s + margin, 1), clamped to [low, high]."""

    margin: Real = param("smallest distance of t above s", unit="σ", source="public code: 0.01", gt=0, lt=1)
    low: Real = param("lower clamp of t", unit="σ", source="public code: 0.02", gt=0, lt=1)
    high: Real = param("upper clamp of t", unit="σ", source="public code: 0.98", gt=0, lt=1)

    @model_validator(mode="after")
    def _check(self) -> RenoiseParams:
        if self.low >= self.high:
            raise ValueError(f"low: {self.low} is not below high: {self.high}; allowed: low < high")
        return self


class ConsistencyParams(Section):
    """The regulariser that keeps the fake score's posterior mean a martingale along its own transitions."""

    weight: Real = param(
        "γ, its weight; 0 turns it off",
        source="paper and public code: 0.01 (stage two of FLUX.1 and FLUX.2 9B: 0)",
        ge=0,
    )
    estimator: Literal["two_sample", "one_sample"] = param(
        "two_sample is unbiased and may be negative", source="paper: two_sample; one_sample ours"
    )
    kernel: Literal["published", "eta_star"] = param(
        "transition to the earlier time: the sampler's η, or the η* that matches the path",
        source="public code: published",
    )
    delta_min: Real = param("smallest backward step δ", unit="σ", source="public code: 1/1000", gt=0, lt=1)
    delta_max: Real = param("largest backward step δ", unit="σ", source="public code: 200/1000", gt=0, lt=1)

    @model_validator(mode="after")
    def _check(self) -> ConsistencyParams:
        if self.delta_min > self.delta_max:
            raise ValueError(
                f"delta_min: {self.delta_min} is above delta_max: {self.delta_max}; allowed: delta_min <= delta_max"
            )
        return self


SMALLEST_TIME = 1e-3
"""σ of the earlier point of a consistency pair at the least; the transition's kernel is singular at 0."""


def check_earlier_time(renoise: RenoiseParams, consistency: ConsistencyParams) -> None:
    """ValueError where a renoising time could lie below the smallest earlier time of its consistency pair."""
    if consistency.weight > 0 and max(renoise.low, renoise.margin) <= SMALLEST_TIME:
        raise ValueError(
            f"renoise.low: {renoise.low} with consistency.weight: {consistency.weight}, whose earlier time is at least"
            f" {SMALLEST_TIME}; allowed: above {SMALLEST_TIME}"
        )


class TrainAcdmdParams(Section):
    """Stage one."""

    recipe: StageOneRecipe = param(
        "a method of `rtdmd methods` whose settings the section is held to; custom: none", source="ours"
    )
    iterations: Whole = param("fake-score updates", unit="updates", source="public code: 15000", ge=1)
    prompt_order: Literal["uniform", "by_tag"] = param(
        "uniform: every prompt equally often; by_tag: every tag equally often",
        source="public code: uniform; by_tag ours",
    )
    processes: Whole = param(
        "processes that share each batch, one for each GPU; another count gives other last digits",
        unit="processes",
        source="public code: 8",
        ge=1,
    )
    compile: Flag = param(
        "torch.compile of the transformer's blocks: minutes at the start, faster after; other last digits",
        source="ours",
    )
    batch_size: Whole = param(
        "prompts per update, of all processes", unit="prompts", source="public code: 9 per GPU on 8 GPUs", ge=1
    )
    micro_batch: Whole = param(
        "prompts per forward pass; only memory and rounding depend on it", unit="prompts", source="public code: 9", ge=1
    )
    sharding: Literal["none", "base"] = param(
        "base: each process keeps a shard of the frozen base (FSDP2): less memory, more traffic; changes only rounding",
        source="ours",
    )
    generator_every: Whole = param("fake-score updates per generator update", source="public code: 10", ge=1)
    lr_generator: Real = param("AdamW step size of the generator", source="public code: 3e-5, FLUX.2 1e-6", gt=0)
    lr_fake: Real = param("AdamW step size of the fake score", source="public code: 3e-5, FLUX.2 1e-6", gt=0)
    warmup: Whole = param("updates of linear warm-up of both rates", unit="updates", source="public code: 0", ge=0)
    betas: tuple[Real, Real] = param("AdamW's moment decays", source="public code: 0.9, 0.999")
    weight_decay: Real = param("AdamW's weight decay", source="public code: 0", ge=0)
    max_grad_norm: Real = param("gradients are clipped to this norm", source="public code: 1", gt=0)
    ema_decay: Real = param("of the generator's average, per generator update", source="public code: 0.99", ge=0, lt=1)
    start: Literal["step", "data"] = param(
        "renoise from the stopped step's level (AC-DMD) or from s = 0 (DMD2)", source="paper: step"
    )
    stop: Literal["random", "last"] = param(
        "last step of a roll-out, the trained one: any of K, or always the K-th", source="paper and public code: random"
    )
    fake_per_step: Flag = param(
        "one fake-score adapter for each stopping step, trained on its turn; stage two gets the last step's",
        source="paper and public code: false; true ours (docs/proved.md, T8)",
    )
    renoise: RenoiseParams
    weighting: Literal["clamp", "inverse_variance"] = param(
        "of the ambient loss: β² min(1/β², weight_clamp), or 1/Var(target)",
        source="public code: clamp; inverse_variance ours",
    )
    weight_clamp: Real = param("largest weight (clamp only)", source="public code: 10", gt=0)
    consistency: ConsistencyParams
    save_every: Whole = param("updates between checkpoints for resuming", unit="updates", source="ours", ge=1)
    keep: Whole = param("checkpoints kept, the newest", unit="checkpoints", source="ours", ge=1)
    panel_every: Whole = param(
        "updates between panels of generator, teacher and fake score in the run folder; 0: none",
        unit="updates",
        source="ours",
        ge=0,
    )
    log_every: Whole = param("updates between rows of curves.csv", unit="updates", source="ours", ge=1)

    @model_validator(mode="after")
    def _check(self) -> TrainAcdmdParams:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas: {list(self.betas)}; allowed: two numbers from 0 to below 1")
        if self.processes > self.batch_size:
            raise ValueError(f"processes: {self.processes}; allowed: 1 to batch_size = {self.batch_size}")
        if self.generator_every > self.iterations:
            raise ValueError(
                f"generator_every: {self.generator_every}, so the generator would never be trained;"
                f" allowed: 1 to iterations = {self.iterations}"
            )
        updates = self.iterations // self.generator_every
        if self.warmup > updates:
            raise ValueError(
                f"warmup: {self.warmup}, so that lr_generator is never reached; allowed: 0 to {updates}, the"
                " generator's updates (iterations / generator_every)"
            )
        if self.fake_per_step and self.stop == "last":
            raise ValueError(
                "fake_per_step: true with stop: last, so that no fake score but the last step's is ever trained;"
                " allowed: false, or stop: random"
            )
        check_earlier_time(self.renoise, self.consistency)
        if self.fake_per_step and self.consistency.weight > 0:
            raise ValueError(
                f"consistency.weight: {self.consistency.weight} with fake_per_step: true; allowed: 0 (its earlier"
                " times belong to no step)"
            )
        check_recipe(self.recipe, self.model_dump(mode="json"))
        return self
