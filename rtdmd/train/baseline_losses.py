"""What the compared methods bring to stage two: DiffusionNFT, stepwise credit, GDMD's weights, DMDR's early helps.

Shapes: N images of a roll-out, K steps; micro-batches as in `rtdmd.train.reinforce`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rtdmd.flow.anneal import annealed_uniform, leaning_scale
from rtdmd.flow.credit import predicted_x0, scored_steps, step_credit
from rtdmd.flow.nft import guided_weight, nft_loss, optimality, reward_gain
from rtdmd.flow.path import interpolate
from rtdmd.rewards.panel import Panel
from rtdmd.train.accumulate import Gradients, micro_batches
from rtdmd.train.distributed.ranks import Ranks
from rtdmd.train.last_step import Weigh
from rtdmd.train.losses import Draws, Velocities
from rtdmd.train.reinforce import Rollout, advantages_of, final_images, policy_gradient

if TYPE_CHECKING:
    from rtdmd.backbones.protocol import Backbone, Conditioning
    from rtdmd.config.train_rtdmd import DynamicParams, TrainRtdmdParams
    from rtdmd.train.adapters import AdapterBank, Learner


def nft_gradient(
    roles: Velocities,
    learner: Learner,
    rollout: Rollout,
    advantages: Tensor,
    p: TrainRtdmdParams,
    draws: Draws,
    total: int | None = None,
) -> tuple[Gradients, float]:
    """Gradient and value of DiffusionNFT on the roll-out's images, each renoised to one of the sampler's own levels.

    The generator has not moved since the roll-out, so v_old is its own velocity without gradient. ``total``: images of
    all processes, whose gradients and values add up; None where these are all.
    """
    term, value, total = Gradients(learner), 0.0, total or len(rollout)
    steps = len(rollout.sigmas) - 1
    sigma = rollout.sigmas[(draws.uniform("nft-level") * steps).long()]
    noise, images, r = draws.normal("nft"), rollout.states[-1], optimality(advantages).to(sigma)
    for rows in micro_batches(len(rollout), p.micro_batch):
        x = interpolate(images[rows], noise[rows], sigma[rows])
        v = roles.velocity("generator", x, sigma[rows], rollout.cond.index(rows))
        loss = nft_loss(v, v.detach(), noise[rows] - images[rows], r[rows], p.nft_strength).sum() / total
        term.add(loss)
        value += loss.item()
    return term, value


def scored(rollout: Rollout, images: Tensor, panel: Panel, backbone: Backbone, size: int) -> dict[str, Tensor]:
    """Scores (N,) of other images (N, C, H, W) of the roll-out's prompts."""
    with panel.scoring(final_images(replace(rollout, states=[images]), backbone, size)) as scoring:
        return scoring.scores(images.device)


def step_advantages(
    rollout: Rollout,
    scores: Mapping[str, Tensor],
    panel: Panel,
    backbone: Backbone,
    trained: Sequence[int],
    p: TrainRtdmdParams,
    eta: float,
    ranks: Ranks | None = None,
) -> dict[int, Tensor]:
    """Advantages (N,) of every trained step as ``p.credit`` has it, of the images of all processes; ``scores``: theirs,
    of the final images."""
    ranks = ranks or Ranks()
    everyone = ranks.all_gather(rollout.groups)
    last = len(rollout.sigmas) - 2
    found = {last: dict(scores)}
    for k in scored_steps(tuple(trained), last, p.credit):
        every = slice(None)
        x0 = predicted_x0(
            rollout.states[k], rollout.means[k], rollout.level(k, every), rollout.level(k + 1, every), eta
        )
        with ranks.sync_errors():
            own = scored(rollout, x0, panel, backbone, p.micro_batch)
        found[k] = {name: ranks.all_gather(part) for name, part in own.items()}
    by_step = {}
    for step in trained:
        credit: dict[str, Tensor] = {
            name: step_credit({k: part[name] for k, part in found.items()}, step, last, p.credit) for name in scores
        }
        by_step[step] = advantages_of(credit, everyone, p)
    return by_step


def stepwise_policy_gradient(
    roles: Velocities,
    learner: Learner,
    rollout: Rollout,
    advantages: Mapping[int, Tensor],
    mine: slice,
    p: TrainRtdmdParams,
    eta: float,
) -> tuple[Gradients, Gradients, dict[str, float]]:
    """`policy_gradient` with advantages of their own for every trained step, averaged over the steps as there.
    advantages[k] (N,) are of the images of all processes, ``mine`` those of the roll-out."""
    policy, anchor, values = Gradients(learner), Gradients(learner), dict[str, float]()
    for step, everyone in advantages.items():
        one, kl, more = policy_gradient(roles, learner, rollout, everyone[mine], (step,), p, eta, everyone=everyone)
        for total, part in ((policy, one), (anchor, kl)):
            total.add_scaled(part, 1 / len(advantages))
        for name, value in more.items():
            worst = name == "ratio_error"
            values[name] = (
                max(values.get(name, 0.0), value) if worst else (values.get(name, 0.0) + value / len(advantages))
            )
    return policy, anchor, values


def gain_weights(
    rollout: Rollout,
    scores: Mapping[str, Tensor],
    mine: slice,
    panel: Panel,
    backbone: Backbone,
    p: TrainRtdmdParams,
    rows: Sequence[int],
) -> Weigh:
    """GDMD's weights of matching for the chosen ``rows``: 1 + γ clip((R(x̂_0 - g) - R(x̂_0)) / Z, ±1), R the weighted
    sum of the rewards that the policy sees, Z its standard deviation over the images of all processes, whose ``scores``
    (N,) are; ``mine``: those of the roll-out."""
    seen = {spec.name: spec.weight for spec in p.rewards if spec.policy is not False}
    chosen = rollout.take(rows)

    def total(of: Mapping[str, Tensor]) -> Tensor:
        return torch.stack([weight * of[name].float() for name, weight in seen.items()]).sum(0)

    everyone = total(scores)
    own, spread = everyone[mine][list(rows)], everyone.std(correction=0)

    def weigh(part: slice, images: Tensor, direction: Tensor) -> Tensor:
        if float(spread) == 0:  # every image has the same reward: nothing to compare with
            return torch.ones_like(own[part])
        target = chosen.take(range(len(chosen))[part])
        gained = total(scored(target, images - direction, panel, backbone, p.micro_batch))
        return guided_weight(reward_gain(gained, own[part], spread), p.matching_gain)

    return weigh


def progress(p: DynamicParams, epoch: int) -> float:
    """How far DMDR's early helps have faded, 0 to 1."""
    return 1.0 if epoch >= p.epochs else epoch / p.epochs


@dataclass(frozen=True)
class Leaning:
    """Roles whose teacher carries the fake score's adapter at ``scale`` (DMDR's dynamic distribution guidance)."""

    roles: AdapterBank
    scale: float

    def velocity(
        self,
        role: str,
        x: Tensor,
        sigma: Tensor,
        cond: Conditioning,
        *,
        guidance: float = 1.0,
        null: Conditioning | None = None,
    ) -> Tensor:
        """As `AdapterBank.velocity`."""
        if role != "teacher":
            return self.roles.velocity(role, x, sigma, cond, guidance=guidance, null=null)
        with self.roles.scaled("fake", self.scale):
            return self.roles.velocity("fake", x, sigma, cond, guidance=guidance, null=null)


@dataclass(frozen=True)
class Fading(Draws):
    """Draws whose renoising times lean towards high noise while ``faded`` is below 1 (DMDR's dynamic renoising)."""

    faded: float = 1.0

    def uniform(self, name: str) -> Tensor:
        """As `Draws.uniform`."""
        u = super().uniform(name)
        return annealed_uniform(u, self.faded) if name == "time" else u


def early_helps(roles: AdapterBank, draws: Draws, p: DynamicParams) -> tuple[Velocities, Draws]:
    """Roles and draws of an epoch's matching, with what is left of DMDR's early helps; themselves where nothing is."""
    faded = progress(p, draws.step)
    scale = leaning_scale(p.guidance, faded)
    return (
        Leaning(roles, scale) if scale > 0 else roles,
        Fading(**vars(draws), faded=faded) if p.renoise and faded < 1 else draws,
    )
