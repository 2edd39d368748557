"""What both training stages share: sections `train_acdmd` and `train_rtdmd` have all of these keys beside their own."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from rtdmd.common.section import Flag, Real, Section, Whole, param


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


class TrainingParams(Section):
    """The keys of both stages; where the public code's value differs between them, the key is the stage's own."""

    prompt_order: Literal["uniform", "by_tag"] = param(
        "uniform: every prompt equally often; by_tag: every tag equally often",
        source="public code: uniform; by_tag ours",
    )
    processes: Whole = param(
        "processes that share each batch or rollout, one for each GPU; another count gives other last digits",
        unit="processes",
        source="public code: 8",
        ge=1,
    )
    compile: Flag = param(
        "torch.compile of the transformer's blocks: minutes at the start, faster after; other last digits",
        source="ours",
    )
    sharding: Literal["none", "base"] = param(
        "base: each process keeps a shard of the frozen base (FSDP2): less memory, more traffic; changes only rounding",
        source="ours",
    )
    betas: tuple[Real, Real] = param("AdamW's moment decays", source="public code: 0.9, 0.999")
    max_grad_norm: Real = param("gradients are clipped to this norm", source="public code: 1", gt=0)
    renoise: RenoiseParams
    weighting: Literal["clamp", "inverse_variance"] = param(
        "of the ambient loss: β² min(1/β², weight_clamp), or 1/Var(target)",
        source="public code: clamp; inverse_variance ours",
    )
    weight_clamp: Real = param("largest weight (clamp only)", source="public code: 10", gt=0)
    consistency: ConsistencyParams
    save_every: Whole = param("steps (updates, epochs) between checkpoints for resuming", source="ours", ge=1)
    keep: Whole = param("checkpoints kept, the newest whole ones", unit="checkpoints", source="ours", ge=1)
    panel_every: Whole = param(
        "steps between panels of generator, teacher and fake score in the run folder; 0: none", source="ours", ge=0
    )
    log_every: Whole = param("steps between rows of curves.csv", source="ours", ge=1)

    @model_validator(mode="after")
    def _check_shared(self) -> TrainingParams:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas: {list(self.betas)}; allowed: two numbers from 0 to below 1")
        check_earlier_time(self.renoise, self.consistency)
        return self
