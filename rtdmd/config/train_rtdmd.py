"""Section `train_rtdmd`: stage two, reward-tilted distribution matching (SubGRPO, last-step back-propagation,
matching).

`recipe: published` promises the public code's settings and scalings, `recipe: corrected` those that hold the
oracle's fixed point (docs/verification.md), `recipe: custom` nothing. What each promises is in `rtdmd.methods.rtdmd`.
"""

from __future__ import annotations

from typing import Literal

from pydantic import field_validator, model_validator

from rtdmd.common.section import Flag, Real, Section, Whole, param
from rtdmd.config.compared import AnnealingParams, RelativeParams, SurrogateParams
from rtdmd.config.recipes import StageTwoRecipe, check_recipe
from rtdmd.config.rewards import RewardEntry, distinct
from rtdmd.config.training import INITIALISATION, Initialisation, OptimizerParams, TrainingParams
from rtdmd.config.validation import ValidationParams


class GeneratorOptimizerParams(OptimizerParams):
    """AdamW of the generator."""

    lr: Real = param("step size", source="public code: 3e-6", gt=0)
    weight_decay: Real = param("decoupled weight decay", source="public code: 1e-4", ge=0)


class FakeOptimizerParams(OptimizerParams):
    """AdamW of the fake score."""

    lr: Real = param("step size", source="public code: SD3 3e-5, FLUX 1e-6", gt=0)


MOVING = ("policy", "matching", "backprop", "nft", "awm", "surrogate")
"""The terms that move the generator; a KL to where it starts is none."""
GRADED = ("policy", "nft", "awm", "surrogate")
"""Those of them that follow the images' advantages."""


class TermWeights(Section):
    """Weights of the generator's loss terms."""

    policy: Real = param("clipped policy gradient over the stochastic steps", source="public code: 1", ge=0)
    matching: Real = param("distribution matching, where matching_path says", source="public code: 1e-3", ge=0)
    backprop: Real = param("reward back-propagation through one step", source="public code: 1e-4", ge=0)
    nft: Real = param("DiffusionNFT on the rollout's images", source="public code: 0 (arXiv 2509.16117)", ge=0)
    awm: Real = param("advantage-weighted matching on them", source="public code: 0 (arXiv 2509.25050)", ge=0)
    surrogate: Real = param("a learned surrogate reward (surrogate)", source="public code: 0; TDM-R1's: 0.7", ge=0)
    reference_kl: Real = param(
        "distance to the stage-one student, as reference_measure has it", source="public code: 0", ge=0
    )


class TrainRtdmdParams(TrainingParams):
    """Stage two."""

    recipe: StageTwoRecipe = param(
        "published: the public code's method settings; corrected: those of docs/verification.md; a method of"
        " `rtdmd methods`; all checked; custom: none",
        source="ours",
    )
    epochs: Whole = param(
        "rollouts, each followed by one generator update", unit="epochs", source="public code: about 1000", ge=1
    )
    prompts_per_epoch: Whole = param(
        "prompts per rollout",
        unit="prompts",
        source="public code: SD3-M 32, SD3.5-M 48, FLUX 64, on all GPUs together",
        ge=1,
    )
    group_size: Whole = param("images per prompt", unit="images", source="public code: 24, SD3-M 16", ge=2)
    candidate_steps: tuple[Whole, ...] = param(
        "stochastic steps among which the trained ones are drawn, 0 the first",
        source="public code: 0, 1, 2; later ones for short runs, docs/evidence/demo.md",
        min_length=1,
    )
    trained_steps: Whole = param("M, stochastic steps trained per epoch", source="public code: 2", ge=1)
    share_noise: Flag = param(
        "one transition noise per group at untrained steps (SubGRPO)", source="paper and public code: true"
    )
    share_initial: Flag = param("one initial latent per group", source="paper and public code: false")
    subset_factor: Flag = param(
        "scale the policy term by the number of candidate_steps / trained_steps",
        source="paper: true; public code: false",
    )
    baseline: Literal["group_mean", "leave_one_out"] = param(
        "subtracted from a reward", source="public code: group_mean"
    )
    advantage_std: Literal["batch", "group", "none"] = param(
        "standard deviation that divides it; none keeps the rewards' units, those of backprop",
        source="public code: batch; paper: group; none ours",
    )
    advantage_clip: Real = param("advantages are clipped to ± this", source="public code: 5", gt=0)
    drop_zero_advantage: Flag = param(
        "leave images of advantage 0 out of the policy term's mean and passes",
        source="public code: false (its filter looks for exact zeros after a subtraction that leaves rounding); true"
        " ours (docs/evidence/oracle.md)",
    )
    density: Literal["gaussian", "published"] = param(
        "log-density of a transition: -|x-μ|²/2ρ² summed, or -(x-μ)² averaged",
        source="paper: gaussian; public code: published",
    )
    clip_range: Real = param(
        "log of the policy ratio is clipped to ± this, in the density's units", source="public code: 1e-5", gt=0
    )
    credit: Literal["trajectory", "gain", "to_go"] = param(
        "what rewards a stochastic step: the image; what its successor's predicted image gains; all gains from it on",
        source="public code: trajectory; gain arXiv 2603.28718; to_go ours",
    )
    weights: TermWeights
    reference_measure: Literal["transitions", "velocities"] = param(
        "of reference_kl at the trained steps: KL of the transitions, or mean square of the velocities' difference",
        source="public code: transitions (averaged over dimensions); velocities ours, of one unit at every level",
    )
    matching_path: Literal["last_step", "random_step", "whole_chain", "reward"] = param(
        "where matching acts: the last step; a random one, as in stage one; all steps, recomputed; or the last, and"
        " as a reward on the trained steps",
        source="public code: last_step; paper: all steps; whole_chain and reward ours (docs/evidence/oracle.md)",
    )
    normalise_matching: Flag = param(
        "divide each image's matching direction by its mean distance to the teacher's projection",
        source="public code: true",
    )
    matching_guidance: Real = param(
        "share of the teacher's guidance beyond 1 that matching keeps",
        source="public code: 1; TDM-R1's: 0.3",
        ge=0,
        le=1,
    )
    matching_gain: Real = param(
        "γ: an image's matching weighs 1 + γ times the clipped reward that its target gains (last_step only)",
        source="public code: 0; GDMD (arXiv 2604.19009), value ours",
        ge=0,
    )
    nft_strength: Real = param(
        "b of DiffusionNFT: v± = v_old ± b (v - v_old)", source="arXiv 2509.16117, its code: 1, or 0.1", gt=0
    )
    nft_form: Literal["plain", "published"] = param(
        "plain: velocities, advantages beyond ±1 cut; published: estimates x̂_0, each divided by its mean distance,"
        " advantages over advantage_clip",
        source="DiffusionNFT's code: published; plain ours",
    )
    awm_power: Real = param(
        "p of AWM's loss A σ/p ℓ^p, ℓ the matching loss of an image", source="AWM's code: 0.25", gt=0, le=1
    )
    surrogate: SurrogateParams
    annealing: AnnealingParams
    gradient_scaling: Literal["none", "unit_norm"] = param(
        "each term's gradient is brought to norm 1 before its weight", source="public code: none; unit_norm ours"
    )
    backprop_at: Literal["last_step", "random_step"] = param(
        "whose x̂_0 is back-propagated: the image of the last step, or the estimate of a random one (ReFL)",
        source="public code: last_step",
    )
    last_step_from: Literal["chain", "renoised"] = param(
        "where the last step's terms start: in the rollout's chain, or at its image renoised to a random level of it,"
        " from which one step is made",
        source="public code: chain; DMDR's: renoised",
    )
    relative: RelativeParams
    backprop_margin: Real = param("m in relu(m - Σ w r), the back-propagated loss", source="public code: 3")
    fake_updates_per_epoch: Whole = param(
        "fake-score updates on the cached rollout", unit="updates", source="public code: 1", ge=0
    )
    update_order: Literal["generator_first", "fake_first"] = param(
        "whether matching sees the fake score from before its updates of the epoch or from after them",
        source="public code: fake_first; generator_first ours",
    )
    loss_average: Literal["trained_steps", "all_steps"] = param(
        "trained_steps: the policy term is a mean over the M trained steps, every other term is whole; all_steps: every"
        " term of every step is divided by M + 1, the trained steps and the last",
        source="public code: all_steps; trained_steps ours",
    )
    fake_samples: Literal["chain", "data"] = param(
        "what the fake score learns from: a random level of the rollout, or its images, which matching compares",
        source="public code: data; chain ours",
    )
    fake_batch_size: Whole = param(
        "images of the rollout per fake-score update", unit="images", source="ours; public code: all of them", ge=1
    )
    last_step_batch_size: Whole = param(
        "images of the rollout per update of the last step's terms; all of them with matching_path: reward",
        unit="images",
        source="ours; public code: all of them",
        ge=1,
    )
    micro_batch: Whole = param(
        "images per forward pass; only memory and rounding depend on it", unit="images", source="ours", ge=1
    )
    stage_one_adapters: Literal["stacked", "merged"] = param(
        "stage one's adapters below new ones: as they are, or merged into copies of the layers that carry them, which"
        " model.dtype rounds (lora only)",
        source="public code: merged; stacked ours, exact (docs/evidence/training.md)",
    )
    fake_adapter: Literal["continued", "new"] = param(
        "the fake score's: stage one's, which goes on learning, or a new one on top of it (lora only)",
        source="public code: new; continued ours",
    )
    adapter_init: Initialisation = param(
        INITIALISATION, source="public code: standard_normal; kaiming_uniform PEFT's default"
    )
    generator_optimizer: GeneratorOptimizerParams
    fake_optimizer: FakeOptimizerParams
    lr_decay_fraction: Real = param(
        "share of the epochs, the last ones, over which generator_optimizer.lr falls linearly to 0",
        source="public code: 0",
        ge=0,
        le=1,
    )
    ema_decay: Real = param("EMA decay of the generator weights", source="public code: 0.9", ge=0, lt=1)
    ema_every: Whole = param("generator updates between EMA updates", unit="updates", source="public code: 8", ge=1)
    ema_warmup: Flag = param(
        "after n generator updates the decay is min((1 + n) / (10 + n), ema_decay), and the EMA is updated where"
        " ema_every divides n + 1, not n",
        source="public code: true; false ours",
    )
    ema_repeats: Whole = param(
        "times in a row that an update of the EMA is made: it then keeps the decay to that power",
        source="public code: 16 (once a batch of an epoch, whose last batch alone moves the generator)",
        ge=1,
    )
    rewards: tuple[RewardEntry, ...] = param(
        "training rewards, each once", source="public code: four of weight 1", min_length=1
    )
    validation: ValidationParams

    _distinct = field_validator("rewards")(distinct)

    @model_validator(mode="after")
    def _check(self) -> TrainRtdmdParams:
        if self.processes > self.prompts_per_epoch:
            raise ValueError(f"processes: {self.processes}; allowed: 1 to prompts_per_epoch = {self.prompts_per_epoch}")
        if min(self.candidate_steps) < 0 or sorted(set(self.candidate_steps)) != list(self.candidate_steps):
            raise ValueError(
                f"candidate_steps: {list(self.candidate_steps)}; allowed: step numbers from 0, ascending, each once"
            )
        if self.trained_steps > len(self.candidate_steps):
            raise ValueError(
                f"trained_steps: {self.trained_steps}; allowed: 1 to {len(self.candidate_steps)}, the candidate_steps"
            )
        weights = dict(self.weights)
        if not any(weights[name] for name in MOVING):
            raise ValueError(f"weights: {', '.join(MOVING)} are all 0; allowed: at least one above 0")
        if self.weights.backprop > 0 and not any(r.differentiable and r.weight > 0 for r in self.rewards):
            raise ValueError(
                f"weights.backprop: {self.weights.backprop} without a differentiable reward;"
                " allowed: 0, or clipscore among rewards"
            )
        if all(r.policy is False for r in self.rewards):
            raise ValueError("rewards: all with policy: false; allowed: at least one with policy: true")
        self._check_rewarded()
        self._check_lengths()
        self._check_matching()
        self._check_compared()
        check_recipe("train_rtdmd", self.recipe, self.model_dump(mode="json"))
        return self

    def _check_rewarded(self) -> None:
        """What follows the rewards needs one that counts."""
        followers = {f"weights.{name}": getattr(self.weights, name) for name in GRADED}
        followers["matching_gain"] = self.matching_gain
        if not any(r.policy is not False and r.weight > 0 for r in self.rewards):
            for key, value in followers.items():
                if value > 0:
                    raise ValueError(
                        f"{key}: {value:g} with weight: 0 for every reward whose policy is not false;"
                        f" allowed: {key}: 0, or a reward with a weight above 0"
                    )
        if self.validation.every > 0 and not any(r.weight > 0 for r in self.rewards):
            raise ValueError(
                f"validation.every: {self.validation.every} with weight: 0 for every reward, so that no student is"
                " better than another; allowed: 0, or a reward with a weight above 0"
            )
        if self.credit != "trajectory" and self.weights.policy == 0:
            raise ValueError(f"credit: {self.credit} with weights.policy: 0; allowed: trajectory")

    def _check_lengths(self) -> None:
        """What happens every so many epochs has to happen: else the run delivers stage one's student."""
        if self.validation.every > self.epochs:
            raise ValueError(
                f"validation.every: {self.validation.every} with epochs: {self.epochs}, so that no student is ever"
                f" better than stage one's; allowed: 0 to {self.epochs}"
            )
        most = self.epochs + self.ema_warmup
        if self.ema_every > most:
            raise ValueError(
                f"ema_every: {self.ema_every} with epochs: {self.epochs}, so that the EMA, which is what the run"
                f" delivers, stays stage one's student; allowed: 1 to {most}"
            )
        if self.subset_factor and self.loss_average == "all_steps":
            raise ValueError(
                "subset_factor: true with loss_average: all_steps, another weight of the policy term; allowed:"
                " subset_factor: false, or loss_average: trained_steps"
            )
        if self.annealing.guidance > 0 and self.fake_adapter == "new":
            raise ValueError(
                f"annealing.guidance: {self.annealing.guidance:g} with fake_adapter: new, of whose two adapters it"
                " would scale one; allowed: 0, or fake_adapter: continued"
            )
        if self.annealing.epochs == 0 and (self.annealing.guidance > 0 or self.annealing.renoise):
            raise ValueError(
                f"annealing.epochs: 0 with annealing.guidance: {self.annealing.guidance:g} and annealing.renoise:"
                f" {str(self.annealing.renoise).lower()}, which then never act; allowed: 1 or more, or guidance: 0 and"
                " renoise: false"
            )

    def _check_matching(self) -> None:
        """Matching on the reinforced steps needs its term, and as a reward a density that has a gradient."""
        if self.matching_path in ("whole_chain", "reward") and self.weights.matching == 0:
            raise ValueError(f"matching_path: {self.matching_path} with weights.matching: 0; allowed: last_step")
        if self.matching_path == "reward" and self.density != "gaussian":
            raise ValueError(f"matching_path: reward with density: {self.density}; allowed: density: gaussian")
        if self.matching_path == "reward" and self.credit != "trajectory":
            raise ValueError(f"credit: {self.credit} with matching_path: reward; allowed: trajectory")
        if self.weights.matching == 0:
            acting = {
                "matching_gain": self.matching_gain,
                "annealing.guidance": self.annealing.guidance,
                "annealing.renoise": self.annealing.renoise,
            }
            for key, value in acting.items():
                if value:
                    off = "false" if value is True else "0"
                    raise ValueError(
                        f"{key}: {str(value).lower()} with weights.matching: 0, on which it acts; allowed: {off}"
                    )
        if self.matching_gain > 0 and self.matching_path != "last_step":
            raise ValueError(
                f"matching_gain: {self.matching_gain} with matching_path: {self.matching_path}; allowed: last_step"
            )

    def _check_compared(self) -> None:
        """What only compared methods set goes with what it acts on."""
        if self.weights.matching == 0 and self.matching_guidance != 1:
            raise ValueError(
                f"matching_guidance: {self.matching_guidance:g} with weights.matching: 0, on which it acts; allowed: 1"
            )
        if self.weights.backprop == 0 and self.relative.liked:
            raise ValueError(
                f"relative.liked: {list(self.relative.liked)} with weights.backprop: 0, on which it acts; allowed: []"
            )
        if self.last_step_from == "renoised":
            others = {"matching_path": self.matching_path, "backprop_at": self.backprop_at}
            for key, value in others.items():
                if value != "last_step":
                    raise ValueError(f"{key}: {value} with last_step_from: renoised; allowed: last_step")
            if self.matching_gain > 0:
                raise ValueError(
                    f"matching_gain: {self.matching_gain:g} with last_step_from: renoised, whose images have no reward"
                    " yet; allowed: 0, or last_step_from: chain"
                )
