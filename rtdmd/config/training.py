"""What both training stages share: sections `train_acdmd` and `train_rtdmd` have all of these keys beside their own."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from rtdmd.common.section import Flag, Real, Section, Whole, param
from rtdmd.config.watch import WatchParams

Initialisation = Literal["kaiming_uniform", "gaussian", "standard_normal"]
"""Of matrix A of a new LoRA: PEFT's default, PEFT's "gaussian", and the public code's re-initialisation on merging."""
INITIALISATION = (
    "A of a new LoRA, whose B is 0 (lora only): kaiming_uniform, of variance 1 / (3 inputs); gaussian, 1 / rank²;"
    " standard_normal, 1"
)


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
    delta: Literal["uniform", "integer"] = param(
        "backward step to the earlier time: uniform in 0.001 to 0.2, or one of 0.001, 0.002, ..., 0.2, down to time 0",
        source="public code: integer; uniform ours",
    )


class OptimizerParams(Section):
    """AdamW of one role."""

    lr: Real = param("step size", source="public code: 3e-5, FLUX.2 1e-6", gt=0)
    betas: tuple[Real, Real] = param("decays of the gradient's two moments", source="public code: 0.9, 0.999")
    eps: Real = param("added to the second moment's root", source="public code: 1e-8", gt=0)
    weight_decay: Real = param("decoupled weight decay", source="public code: 0", ge=0)
    max_grad_norm: Real = param("gradients are clipped to this norm", source="public code: 1", gt=0)

    @field_validator("betas")
    @classmethod
    def _check_betas(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError("allowed: two numbers from 0 to below 1")
        return betas


class TrainingParams(Section):
    """The keys of both stages; where the public code's value differs between them, the key is the stage's own."""

    prompts: str = param(
        "the set of prepare_prompts.sets that is trained on",
        source="paper: stage one PickScore's prompts, stage two GenEval's",
    )
    prompt_order: Literal["uniform", "by_tag", "as_listed"] = param(
        "uniform: every prompt equally often; by_tag: every tag; as_listed: a prompt as often as its sources have it",
        source="public code: as_listed; uniform and by_tag ours",
    )
    tag_shares: dict[str, Annotated[Whole, Field(ge=0)]] = param(
        "by_tag alone: prompts of a tag for each prompt of a tag that is not named here; 0 leaves the tag out",
        source="Flow-GRPO's GenEval prompts: position 7, counting 5, color_attr 3, colors and two_object 1,"
        " single_object 0; ours {}",
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
    sharding: Literal["none", "base", "hybrid"] = param(
        "of the frozen base (FSDP2): base shards it over all processes, hybrid inside groups; changes only rounding",
        source="public code: base (full), stage two of SD3.5-M none (DDP), of SD3-M hybrid",
    )
    shard_group: Whole | None = param(
        "hybrid: processes that share one base, best those of a node; null otherwise",
        unit="processes",
        source="public code: the 8 GPUs of a node",
        ge=2,
    )
    generator_optimizer: OptimizerParams
    fake_optimizer: OptimizerParams
    guidance_range: tuple[Real, Real] | None = param(
        "the teacher's guidance in matching is drawn from here, once an update; null: model.guidance",
        source="real_guidance_scale_min and _max in the public code's settings, where they are equal",
    )
    renoise_time: Literal["uniform", "clamped"] = param(
        "t of x_t: uniform on an interval above s, without atoms; or U(s + 0.01, 1) clamped to 0.02 and 0.98",
        source="public code: clamped; uniform ours (docs/evidence/oracle.md)",
    )
    weighting: Literal["clamp", "inverse_variance"] = param(
        "of the ambient loss: β² min(1/β², 10), or 1/Var(target)",
        source="public code: clamp; inverse_variance ours",
    )
    consistency: ConsistencyParams
    watch: WatchParams
    save_every: Whole = param("steps (updates, epochs) between checkpoints for resuming", source="ours", ge=1)
    keep: Whole = param("checkpoints kept, the newest whole ones", unit="checkpoints", source="ours", ge=1)
    image_log_every: Whole = param(
        "steps between image grids of generator, teacher and fake score in the run folder; 0: none", source="ours", ge=0
    )
    log_every: Whole = param("steps between rows of curves.csv", source="ours", ge=1)

    def base_shards(self, processes: int) -> int:
        """Shards of the frozen base where so many processes train; 1: each process keeps all of it."""
        if self.sharding == "none":
            return 1
        return processes if self.shard_group is None else min(self.shard_group, processes)
