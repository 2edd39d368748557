"""What the compared methods bring to stage two: DiffusionNFT, AWM, stepwise credit, GDMD's weights, DMDR's annealing
and its start from renoised images, SRPO's relative reward. TDM-R1's surrogate is in `rtdmd.train.surrogate`.

Shapes: N images of a rollout, K steps; ``local``: this process's images among those of all processes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rtdmd.flow.anneal import annealed_scale, annealed_uniform
from rtdmd.flow.awm import awm_loss
from rtdmd.flow.credit import scored_steps, step_credit
from rtdmd.flow.nft import guided_weight, nft_loss, optimality, published_nft_loss, reward_gain
from rtdmd.flow.path import interpolate, x0_from_velocity
from rtdmd.train.losses import Draws, Renoised, micro_batches
from rtdmd.train.rollout import CPU, Rollout, to_device

if TYPE_CHECKING:
    from rtdmd.backbones.protocol import Conditioning
    from rtdmd.config.compared import AnnealingParams, RelativeParams
    from rtdmd.config.train_rtdmd import TrainRtdmdParams
    from rtdmd.rewards.reward_models import Batch, RewardModels
    from rtdmd.train.adapters import AdapterBank
    from rtdmd.train.engine.protocols import StageTwoTrainer
    from rtdmd.train.learner import Terms

Weigh = Callable[[slice, Tensor, Tensor], Tensor]
"""(rows of a rollout, their images x̂_0, their matching directions g (B, C, H, W)) -> a weight for each (B,)."""


def nft_losses(p: TrainRtdmdParams, v: Tensor, target: Tensor, sigma: Tensor, advantages: Tensor) -> Tensor:
    """DiffusionNFT, (B,). The generator has not moved since the rollout, so v_old is its own velocity without
    gradient."""
    if p.nft_form == "plain":
        return nft_loss(v, v.detach(), target, optimality(advantages), p.nft_strength)
    r = optimality(advantages / p.advantage_clip)
    return p.advantage_clip * published_nft_loss(v, v.detach(), target, sigma, r, p.nft_strength)


def awm_losses(p: TrainRtdmdParams, v: Tensor, target: Tensor, sigma: Tensor, advantages: Tensor) -> Tensor:
    """Advantage-weighted matching, (B,), of advantages over ``advantage_clip``."""
    return awm_loss(v, target, sigma, advantages / p.advantage_clip, p.awm_power)


RENOISED = {"nft": nft_losses, "awm": awm_losses}
"""Losses of renoised images by term: of velocity and target (B, C, H, W), level and advantage (B,)."""


def renoised_gradients(
    trainer: StageTwoTrainer, rollout: Rollout, advantages: Tensor, draws: Draws, terms: Terms
) -> dict[str, float]:
    """Values, and in ``terms`` the gradients, of those of RENOISED that have a weight, on the rollout's images, each
    renoised to one of the sampler's own levels. Those of all processes add up to means over all images."""
    p = trainer.p
    steps = len(rollout.sigmas) - 1
    total = p.prompts_per_epoch * p.group_size
    sigma = rollout.sigmas[(draws.uniform("nft-level") * steps).long()]
    noises = replace(draws, device=CPU).normal("nft")
    graded = advantages.to(sigma)
    values = {name: 0.0 for name in RENOISED if getattr(p.weights, name) > 0}
    for name in values:
        for rows in micro_batches(len(rollout), p.micro_batch):
            image = rollout.state(-1, rows)
            noise = to_device(noises[rows], rollout.sigmas.device)
            x = interpolate(image, noise, sigma[rows])
            v = trainer.adapters.velocity("generator", x, sigma[rows], rollout.cond.index(rows))
            loss = RENOISED[name](p, v, noise - image, sigma[rows], graded[rows]).sum() / total
            terms.add({name: loss})
            values[name] += loss.item()
    return values


@torch.no_grad()
def from_renoised(trainer: StageTwoTrainer, rollout: Rollout, draws: Draws) -> Rollout:
    """One-step chains of the same prompts, as DMDR's code has them: the images renoised to one of the sampler's levels,
    the same for all, and the x̂_0 that the generator makes of them."""
    k = draws.integer(len(rollout.sigmas) - 1, "renoised-level")
    level = rollout.sigmas[k]
    noise = replace(draws, device=CPU).normal("renoised")
    start = interpolate(rollout.states[-1], noise, level.to(CPU).expand(len(rollout)))
    images = torch.empty_like(start)
    for rows in micro_batches(len(rollout), trainer.p.micro_batch):
        x = to_device(start[rows], rollout.sigmas.device)
        sigma = level.expand(len(start[rows]))
        v = trainer.adapters.velocity("generator", x, sigma, rollout.cond.index(rows))
        images[rows] = x0_from_velocity(x, v, sigma).to(CPU)
    sigmas = torch.stack([level, torch.zeros_like(level)])
    return replace(rollout, states=[start, images], means=[], stds=[], sigmas=sigmas, equal=(False,))


def relative_gradients(
    reward_models: RewardModels, batches: Sequence[Batch], weights: Mapping[str, float], p: RelativeParams, draws: Draws
) -> list[tuple[Tensor, Tensor]]:
    """As `RewardModels.gradients`, of SRPO's relative reward: (1 + k) r(liked words. prompt) - r(disliked words.
    prompt)."""
    found = []
    for words in (p.liked, p.disliked):
        which = draws.integer(len(words), "words", words is p.liked)
        asked: list[Batch] = []
        for images, prompts, metadata in batches:
            asked.append((images, [f"{words[which]}. {prompt}" for prompt in prompts], metadata))
        found.append(reward_models.gradients(asked, weights))
    gain = 1 + p.strength
    return [(gain * r - s, gain * dr - ds) for (r, dr), (s, ds) in zip(*found, strict=True)]


def scored(trainer: StageTwoTrainer, rollout: Rollout, images: Tensor) -> dict[str, Tensor]:
    """Scores (N,) of other images (N, C, H, W) of the rollout's prompts."""
    with trainer.rewards.scoring(trainer.images(replace(rollout, states=[images]))) as scoring:
        return scoring.scores(rollout.sigmas.device)


def step_advantages(
    trainer: StageTwoTrainer, rollout: Rollout, scores: Mapping[str, Tensor], trained: Sequence[int]
) -> dict[int, Tensor]:
    """Advantages (N,) of every trained step as ``credit`` has it, of the images of all processes; ``scores``: theirs,
    of the final images."""
    p = trainer.p
    ranks = trainer.ranks
    all_ranks = ranks.all_gather(rollout.groups)
    last = len(rollout.sigmas) - 2
    found = {last: dict(scores)}
    for k in scored_steps(tuple(trained), last, p.credit):
        with ranks.sync_errors():
            own = scored(trainer, rollout, rollout.predicted_x0(slice(None), k).to(CPU))
        found[k] = {name: ranks.all_gather(part) for name, part in own.items()}
    by_step = {}
    for step in trained:
        credit = {}
        for name in scores:
            by_level = {k: part[name] for k, part in found.items()}
            credit[name] = step_credit(by_level, step, last, p.credit)
        by_step[step] = trainer.advantages(credit, all_ranks)
    return by_step


def stepwise_policy_gradient(
    trainer: StageTwoTrainer, rollout: Rollout, advantages: Mapping[int, Tensor], local: slice, terms: Terms
) -> dict[str, float]:
    """Add to ``terms`` the trainer's policy gradient with advantages of their own for every trained step, averaged over
    the steps, or with ``loss_average: all_steps`` summed, as there; its values. advantages[k] (N,) are of the images of
    all processes."""
    share = 1.0 if trainer.p.loss_average == "all_steps" else 1 / len(advantages)
    values: dict[str, float] = {}
    for step, all_ranks in advantages.items():
        one = replace(terms)  # its sums are empty
        more = trainer.policy_gradient(rollout, all_ranks[local], (step,), one, all_ranks)
        for name, sums in one.sums.items():
            terms.sums[name].add_scaled(sums, share)
        for name, value in more.items():
            so_far = values.get(name, 0.0)
            values[name] = max(so_far, value) if name == "ratio_error" else so_far + value / len(advantages)
    return values


def gain_weights(
    trainer: StageTwoTrainer, chosen: Rollout, scores: Mapping[str, Tensor], numbers: Sequence[int]
) -> Weigh:
    """GDMD's weights of matching for the ``chosen`` images, whose ``numbers`` among those of all processes are given:
    1 + γ clip((R(x̂_0 - g) - R(x̂_0)) / Z, ±1), R the weighted sum of the rewards that the policy sees, Z its standard
    deviation over the images of all processes, whose ``scores`` (N,) are."""
    p = trainer.p
    seen = {spec.name: spec.weight for spec in p.rewards if spec.policy is not False}

    def total(of: Mapping[str, Tensor]) -> Tensor:
        return torch.stack([weight * of[name].float() for name, weight in seen.items()]).sum(0)

    all_ranks = total(scores)
    own = all_ranks[list(numbers)]
    spread = all_ranks.std(correction=0)

    def weigh(part: slice, images: Tensor, direction: Tensor) -> Tensor:
        if float(spread) == 0:  # every image has the same reward: nothing to compare with
            return torch.ones_like(own[part])
        target = chosen.take(range(len(chosen))[part])
        gained = total(scored(trainer, target, images - direction))
        return guided_weight(reward_gain(gained, own[part], spread), p.matching_gain)

    return weigh


@dataclass(frozen=True)
class DmdrAnnealing:
    """What is left at one epoch of DMDR's two changes to matching, both annealed to nothing over ``p.epochs``: dynamic
    distribution guidance and dynamic renoising."""

    p: AnnealingParams
    epoch: int

    @property
    def progress(self) -> float:
        """How far both are annealed, 0 to 1."""
        return 1.0 if self.epoch >= self.p.epochs else self.epoch / self.p.epochs

    def teacher(self, adapters: AdapterBank, point: Renoised, cond: Conditioning, guided: Mapping[str, Any]) -> Tensor:
        """The teacher's guided velocity (B, C, H, W) at the renoised images, with the fake score's adapter on it at
        the scale that is left."""
        scale = annealed_scale(self.p.guidance, self.progress)
        if scale == 0:
            return adapters.velocity("teacher", point.x_t, point.t, cond, **guided)
        with adapters.scaled("fake", scale):
            return adapters.velocity("fake", point.x_t, point.t, cond, **guided)

    def draws(self, draws: Draws) -> Draws:
        """The draws with the renoising times that are left; themselves where those are uniform."""
        return AnnealedDraws(**vars(draws), progress=self.progress) if self.p.renoise and self.progress < 1 else draws


@dataclass(frozen=True)
class AnnealedDraws(Draws):
    """Draws whose renoising times favour high noise while ``progress`` is below 1 (DMDR's dynamic renoising)."""

    progress: float = 1.0

    def uniform(self, name: str) -> Tensor:
        """As `Draws.uniform`."""
        u = super().uniform(name)
        return annealed_uniform(u, self.progress) if name == "time" else u
