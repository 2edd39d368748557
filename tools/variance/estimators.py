"""Estimators of ∇E r(x̂_0) on real rollouts: each stage-two way to a reward, at one price, against an unbiased one.

All estimate the gradient of the mean differentiable reward over the same prompts, in the stage-two adapter, at the
stage-one student. The prompts are drawn once: which of them came would else be most of a quiet estimator's noise. An
estimate is built of rounds, a group of images a prompt each; its noise is a round's over their number.

Two are exact for every step: "whole chain" back-propagates through all of them with the noise fixed
(`RtdmdTrainer.repeat_chain`), and "policy + last step" is the hybrid, score function on the stochastic steps, pathwise
on the last (`rtdmd verify` holds it against closed forms). The second is the reference, as it is by far the quieter:
a chain's derivative has heavy tails. Advantages keep the reward's units with the leave-one-out baseline, so that only
what a row names can bias it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rtdmd.backbones import load_backbone
from rtdmd.backbones.protocol import Conditioning
from rtdmd.common.errors import UserError
from rtdmd.common.rng import permutation
from rtdmd.common.torch_setup import configure
from rtdmd.config import Params
from rtdmd.config.load import validate
from rtdmd.config.presets import merged
from rtdmd.flow.policy import draw_step_subset
from rtdmd.plan.budget import WORLD, Prices, stage_two_epoch
from rtdmd.prompts.records import read_set
from rtdmd.rewards.reward_models import load_rewards
from rtdmd.study.variance_table import REFERENCE
from rtdmd.train.adapters import ADAPTERS, AdapterBank
from rtdmd.train.baseline_losses import step_advantages, stepwise_policy_gradient
from rtdmd.train.learner import Gradients, Terms
from rtdmd.train.losses import Draws, micro_batches
from rtdmd.train.rollout import Rollout
from rtdmd.train.rtdmd import RtdmdTrainer
from rtdmd.train.student_record import read_student

STAGE = "train_rtdmd"
CHAIN = "whole chain"
COMMON: dict[str, Any] = {
    "recipe": "custom",
    "matching_path": "last_step",
    "candidate_steps": [0, 1, 2],
    "trained_steps": 3,
    "share_noise": False,
    "share_initial": False,
    "subset_factor": True,
    "baseline": "leave_one_out",
    "advantage_std": "none",
    "advantage_clip": 1e6,
    "density": "gaussian",
    "drop_zero_advantage": False,
    "credit": "trajectory",
    "backprop_margin": 1e3,
    "gradient_scaling": "none",
    "fake_updates_per_epoch": 0,
    "weights": {"policy": 1.0, "matching": 0.0, "backprop": 1.0, "nft": 0.0, "reference_kl": 0.0},
}
_ALONE = {"weights": {"policy": 0.0}}
_SUB = {"share_noise": True}
ESTIMATORS: dict[str, dict[str, Any]] = {
    CHAIN: _ALONE,
    "last step alone": _ALONE,
    "random step's estimate (ReFL)": _ALONE | {"backprop_at": "random_step"},
    REFERENCE: {},
    "... M = 1": {"trained_steps": 1},
    "... M = 1, shared noise": _SUB | {"trained_steps": 1},
    "... M = 2, shared noise": _SUB | {"trained_steps": 2},
    "... M = 1, shared noise and start": _SUB | {"trained_steps": 1, "share_initial": True},
    "... steps 1 and 2 in turn, shared noise and start": _SUB
    | {"trained_steps": 1, "share_initial": True, "candidate_steps": [1, 2]},
    "... group mean baseline": {"baseline": "group_mean"},
    "... published log-density": {"density": "published", "clip_range": 1e-5},
    "... gains still to come": {"credit": "to_go"},
    "... stepwise gains": {"credit": "gain"},
}
"""Name -> settings over COMMON; a name with ... is the hybrid above it."""


@dataclass(frozen=True)
class Bench:
    """Everything a round is computed on: the trainer with the stage-one student and a fresh adapter, and the
    prompts."""

    trainer: RtdmdTrainer
    records: list[dict[str, Any]]
    cond: Conditioning
    prices: Prices = WORLD

    def with_settings(self, settings: Mapping[str, Any]) -> Params:
        tree = self.trainer.params.model_dump(mode="json")
        return validate(merged(merged(tree, {STAGE: COMMON}), {STAGE: dict(settings)}), "an estimator")


def open_bench(params: Params, root: Path, prompts: int = 16) -> Bench:
    """Load the student of results/train_acdmd and draw ``prompts`` training prompts, at least two. UserError where a
    file is missing, there are not as many prompts, or no reward is differentiable."""
    device = configure(params.run)
    rewards = [spec for spec in params.train_rtdmd.rewards if spec.differentiable]
    if not rewards:
        raise UserError("train_rtdmd.rewards: none passes a gradient; allowed: clipscore among them")
    one = [{**rewards[0].model_dump(mode="json", exclude_none=True), "weight": 1.0, "policy": True}]
    tree = merged(params.model_dump(mode="json"), {STAGE: {"rewards": one, "recipe": "custom"}})
    params = validate(tree, "the study")
    paths = {"prompts": "results/prepare_prompts/train.jsonl", "acdmd": "results/train_acdmd/generator.safetensors"}
    for path in paths.values():
        if not (root / path).is_file():
            raise UserError(f"{path}: no such file; `snakemake train_acdmd` makes it")
    everything = [prompt.row() for prompt in read_set(root / paths["prompts"], params.train_rtdmd.prompts)]
    if not 2 <= prompts <= len(everything):
        raise UserError(f"--prompts {prompts}; allowed: 2 to the {len(everything)} of {paths['prompts']}")
    order = permutation(len(everything), params.run.seed, "study", "prompts")
    records = [everything[row] for row in order[:prompts]]
    backbone = load_backbone(params.model, text=False, vae=True, device=device, root=root)
    bank = AdapterBank(backbone, params.adapter, ADAPTERS[STAGE], params.run.seed)
    bank.load("acdmd", read_student(root / paths["acdmd"], params, paths["acdmd"]), paths["acdmd"])
    text = load_backbone(params.model, text=True, vae=False, bases="none", device=device, root=root)
    texts = [record["prompt"] for record in records]
    cond = Conditioning.cat([text.encode(texts[rows]) for rows in micro_batches(len(texts), 64)])
    reward_models = load_rewards(params.train_rtdmd.rewards, device, root)
    return Bench(RtdmdTrainer(params, backbone, reward_models, cond.index([0]), adapters=bank), records, cond)


def price(bench: Bench, name: str) -> float:
    """What a round costs, in forward passes of the generator (`rtdmd.plan.budget`)."""
    params, count = settings_for(bench, name)
    parts = stage_two_epoch(params, bench.prices)
    if params.train_rtdmd.weights.policy == 0:  # no advantage is needed
        parts.pop("score")
    passes = sum(parts.values())
    if name == CHAIN:  # back-propagation through K steps, each run again, in place of one
        steps = params.model.num_steps
        passes += count * ((2 * steps - 1) * bench.prices.two + (steps - 1) * bench.prices.backward)
    return passes


def settings_for(bench: Bench, name: str) -> tuple[Params, int]:
    """The parameters of an estimator's round, and its images: a group for every prompt, all in every term."""
    prompts = len(bench.records)
    count = prompts * bench.trainer.p.group_size
    return bench.with_settings(ESTIMATORS[name] | {"prompts_per_epoch": prompts, "last_step_batch_size": count}), count


def one_round(bench: Bench, name: str, number: int, stream: str = "study") -> Tensor:
    """One estimate (P,) of ∇E r: a rollout of every prompt's group, with the noise that ``number`` names."""
    params, count = settings_for(bench, name)
    trainer = bench.trainer.variant(params)
    p = trainer.p
    seed = params.run.seed
    rows = [row for row in range(len(bench.records)) for _ in range(p.group_size)]
    records = [bench.records[row] for row in rows]
    shape = trainer.backbone.latent_shape()
    device = trainer.sigmas.device
    draws = Draws(seed, f"{stream}-{name}", number, tuple(range(count)), shape, device)
    order = permutation(len(p.candidate_steps), seed, stream, number, "subset")
    trained = [p.candidate_steps[i] for i in draw_step_subset(order, p.trained_steps)]
    groups = torch.arange(count) // p.group_size
    rollout = trainer.roll_out(bench.cond.index(rows), records, groups, trained, draws)
    if name == CHAIN:
        return -flat(chain_gradient(trainer, rollout))
    terms = Terms(trainer.generator, dict(p.weights))
    trainer.last_step(rollout, draws, terms)
    total = terms.sums["backprop"]
    if p.weights.policy > 0:
        total.add_scaled(policy_part(trainer, rollout, trained), policy_units(rollout, p.density))
    return -flat(total)


def policy_units(rollout: Rollout, density: str) -> float:
    """By what a density's policy gradient is multiplied to have the last step's units. The published log-density,
    -mean (x - μ)², is the Gaussian's times 2 std² / D: the mean over the steps is made 1, their shares are left."""
    if density == "gaussian":
        return 1.0
    mean = sum(std.square().mean().item() for std in rollout.stds) / len(rollout.stds)
    return rollout.states[0][0].numel() / (2 * mean)


def policy_part(trainer: RtdmdTrainer, rollout: Rollout, trained: list[int]) -> Gradients:
    """The score-function term of a round."""
    with trainer.rewards.scoring(trainer.images(rollout)) as scoring:
        scores = scoring.scores(trainer.sigmas.device)
    terms = Terms(trainer.generator, dict(trainer.p.weights))
    if trainer.p.credit == "trajectory":
        trainer.policy_gradient(rollout, trainer.advantages(scores, rollout.groups), trained, terms)
    else:
        credited = step_advantages(trainer, rollout, scores, trained)
        stepwise_policy_gradient(trainer, rollout, credited, slice(None), terms)
    return terms.sums["policy"]


def chain_gradient(trainer: RtdmdTrainer, rollout: Rollout) -> Gradients:
    """Minus the gradient of the mean reward through every step, noises fixed."""
    (reward,) = trainer.rewards.rewards.values()
    total = Gradients(trainer.generator)
    for rows in micro_batches(len(rollout), trainer.p.micro_batch):
        images = trainer.backbone.decode(rollout.repeat_chain(trainer.adapters, rows))
        prompts = [record["prompt"] for record in rollout.records[rows]]
        metadata = [record["metadata"] for record in rollout.records[rows]]
        total.add(-reward.score(images, prompts, metadata).sum() / len(rollout))
    return total


def flat(gradients: Gradients) -> Tensor:
    """A term's gradient as one vector (P,); a fresh LoRA's first factors have none yet and are zeros in it."""
    assert gradients.total is not None
    return torch.cat([part.flatten().cpu() for part in gradients.total])


def rounds_within(bench: Bench, name: str, budget: float) -> int:
    """Rounds that the budget pays for, to the nearest, at least the three that figures take."""
    return max(3, round(budget / price(bench, name)))
