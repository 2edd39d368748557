"""`rtdmd train_rtdmd`: stage two, reward-tilted distribution matching (Algorithm 1, second half).

Reads stage one's generator and fake score, the teacher, the text cache and the rewards; writes the averaged stage-two
adapter, which sits on top of stage one's, the curves, and what the scorers were.

Where this departs from the public code (each a parameter): the true Gaussian log-density; zero-advantage images leave
the policy term only, not the last step's; each term's gradient can be brought to norm 1 before its weight. `recipe:
published` refuses any setting that is not the public code's.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rtdmd.backbones import load_backbone
from rtdmd.backbones.protocol import Backbone, Conditioning
from rtdmd.config import Params
from rtdmd.files import load_tensors, save_tensors, write_json
from rtdmd.flow.policy import draw_step_subset
from rtdmd.rewards import identities
from rtdmd.rewards.panel import Panel, open_panel
from rtdmd.rng import integers, permutation
from rtdmd.stage import Stage, open_stage
from rtdmd.torch_setup import configure
from rtdmd.train.diagnose import Pixels, advantage_values, latent_values, require_signal, reward_values
from rtdmd.train.engine import Learner, Loop, Saved
from rtdmd.train.journal import write_curves
from rtdmd.train.pictures import Pictures
from rtdmd.train.prompts import TrainingPrompts
from rtdmd.train.reinforce import (
    Rollout,
    advantages_of,
    combine,
    final_images,
    last_step_gradients,
    policy_gradient,
    require_on_policy,
    roll_out,
)
from rtdmd.train.roles import STACKS, Average, Roles
from rtdmd.train.terms import Draws, consistency_loss, fake_ambient_loss, renoised
from rtdmd.train.validation import Validation

NAME = "train_rtdmd"


def run(root: Path = Path(".")) -> None:
    """Run the stage in ``root``."""
    with open_stage(NAME, root) as stage:
        train(stage)


def train(stage: Stage) -> None:
    """Reinforce the stage-one generator, resuming from the run folder where it holds a checkpoint."""
    params, p = stage.params, stage.params.train_rtdmd
    device = configure(params.run)
    backbone = load_backbone(params.model, text=False, vae=True, device=device, root=stage.root)
    roles = load_roles(stage, backbone)
    weights = roles.trainable("rtdmd")
    average = Average(weights, p.ema_decay)
    generator = Learner.adamw(weights, p.lr_generator, p, fall=(p.lr_fall, p.epochs), average=average)
    fake = Learner.adamw(roles.trainable("fake"), p.lr_fake, p)
    aside = p.validation.prompts if p.validation.every else 0
    prompts = TrainingPrompts.open(stage, device, p.prompt_order, aside)
    panel = open_panel(p.rewards, device, stage.root)
    sigmas = backbone.sigmas(params.model.num_steps).to(device)
    players = Players(params, roles, generator, fake, average, prompts.cache.null(), sigmas, backbone, panel)
    validation = Validation(
        p.validation, players, prompts.aside, prompts.conditioning(prompts.aside) if aside else None
    )
    saved: dict[str, Saved] = {"generator": generator, "fake": fake} | ({"validation": validation} if aside else {})
    pictures = Pictures(p.panel_every, stage.run_dir, params, roles, backbone, prompts, sigmas)
    loop = Loop(
        stage.run_dir, p.epochs, p.save_every, p.log_every, saved, NAME, "epoch", keep=p.keep, over=validation.over
    )

    for step in loop:
        records = [r for r in prompts.batch(step, p.prompts_per_epoch, NAME) for _ in range(p.group_size)]
        draws = Draws(stage.seed, NAME, step, tuple(range(len(records))), backbone.latent_shape(), device)
        try:
            values = validation.before(step) | epoch(players, prompts.conditioning(records), records, draws)
            loop.log(step, values | validation.after(step + 1), images=len(records))
            require_signal(loop.journal, p)
            pictures.after(step + 1)
        except FloatingPointError as error:
            raise loop.fault(step, error) from error

    chosen = validation.put_best()
    average.swap()
    about = {"stage": NAME, "mode": params.adapter.mode, "rank": str(params.adapter.rank)}
    about |= {"alpha": str(params.adapter.alpha), "role": "generator"} | chosen
    save_tensors(roles.state("rtdmd"), stage.output("generator.safetensors"), about)
    write_curves(loop.rows, stage.output("curves.csv"))
    write_json(stage.output("scorers.json"), identities(panel.rewards.values()))


@dataclass(frozen=True)
class Players:
    """Everything that an epoch works with; sigmas (K+1,)."""

    params: Params
    roles: Roles
    generator: Learner
    fake: Learner
    average: Average
    null: Conditioning
    sigmas: Tensor
    backbone: Backbone
    panel: Panel


def load_roles(stage: Stage, backbone: Backbone) -> Roles:
    """Roles of stage two: stage one's generator frozen below a new adapter, and stage one's fake score."""
    roles = Roles(backbone, stage.params.adapter, STACKS[NAME], stage.seed)
    for adapter, name in (("acdmd", "generator"), ("fake", "fake")):
        path = f"results/train_acdmd/{name}.safetensors"
        tensors, _ = load_tensors(stage.input(path))
        roles.load(adapter, tensors, path)
        if adapter == "acdmd" and roles.full:
            roles.load("rtdmd", tensors, path)
    return roles


def epoch(players: Players, cond: Conditioning, records: list[dict[str, Any]], draws: Draws) -> dict[str, float]:
    """One epoch of Algorithm 1 on N = M prompts x G images: roll-out, advantages, one generator update, fake updates.

    cond and records have N rows, the images of a prompt next to each other.
    """
    params, roles, p = players.params, players.roles, players.params.train_rtdmd
    eta, weights = params.model.eta, p.weights
    # 3. SubGRPO: the trained subset of the stochastic steps; elsewhere a group shares its noise.
    order = permutation(len(p.candidate_steps), draws.seed, draws.stream, draws.step, "subset")
    trained = [p.candidate_steps[i] for i in draw_step_subset(order, p.trained_steps)]
    # 1. Roll out M prompts x G images.
    groups = torch.arange(len(records)) // p.group_size
    rollout = roll_out(roles, cond, records, groups, players.sigmas, trained, p, eta, draws)
    # 5. Last step: distribution matching at s = 0, and back-propagation of the differentiable rewards.
    pathwise = [(spec.weight, players.panel.rewards[spec.name]) for spec in p.rewards if spec.differentiable]
    guided = {"guidance": params.model.guidance, "null": players.null}
    rows = list(range(len(rollout)))
    if p.last_step_batch_size < len(rollout) and p.matching_path != "reward":  # a reward of every image
        rows = permutation(len(rollout), draws.seed, draws.stream, draws.step, "last-rows")[: p.last_step_batch_size]
    pixels = Pixels()
    images = pixels.watch(final_images(rollout, players.backbone, p.micro_batch))
    with players.panel.scoring(images) as scoring:  # 2. Rewards; a slow scorer goes on while the last step's terms run
        matching, backprop, held, values = last_step_gradients(
            roles, players.generator, rollout.take(rows), pathwise, players.backbone, p, guided, eta, draws.of(rows)
        )
        scores = scoring.scores(rollout.states[-1].device)
    advantages = advantages_of(scores, groups, p)
    # 4. Policy gradient over the trained steps, with the optional reference KL and matching as a reward.
    policy, anchor, more = policy_gradient(roles, players.generator, rollout, advantages, trained, p, eta, held)
    require_on_policy(more["ratio_error"], p.clip_range)
    terms = {"policy": (weights.policy, policy), "matching": (weights.matching, matching)}
    terms |= {"backprop": (weights.backprop, backprop), "reference_kl": (weights.reference_kl, anchor)}
    gradient, norms = combine(terms, p.gradient_scaling)
    values = more | values | norms | {"generator_grad_norm": players.generator.step(gradient)}
    if (draws.step + 1) % p.ema_every == 0:
        players.average.update()
    # 6. Fake-score updates from the cached roll-out.
    for update in range(p.fake_updates_per_epoch):
        values |= fake_update(params, roles, players.fake, rollout, update, draws)
    values |= {f"reward_{name}": value.mean().item() for name, value in scores.items()}
    values |= {"advantage_std": advantages.std().item(), "sample_std": rollout.states[-1].std().item()}
    values |= latent_values(rollout.states[-1]) | pixels.values()
    return values | reward_values(scores, groups) | advantage_values(advantages)


def fake_update(
    params: Params, roles: Roles, fake: Learner, rollout: Rollout, update: int, draws: Draws
) -> dict[str, float]:
    """One ambient update of the fake score on images of the roll-out, taken at a random level of their chains."""
    p, count = params.train_rtdmd, len(rollout)
    rows = permutation(count, draws.seed, draws.stream, draws.step, "fake-rows", update)[: p.fake_batch_size]
    k = last = len(rollout.sigmas) - 1
    if p.fake_start == "chain":
        k = integers(1, last + 1, draws.seed, draws.stream, draws.step, "fake-level", update)
    own = draws.of(rows, f"{draws.stream}-fake-{update}")
    cond, s = rollout.cond.index(rows), rollout.sigmas[k].expand(len(rows))
    point = renoised(rollout.states[k][rows], s, p.renoise, own)
    v_fake = roles.velocity("fake", point.x_t, point.t, cond)
    loss = fake_ambient_loss(point, v_fake, p.weighting, p.weight_clamp).mean()
    values = {"fake_ambient": loss.item()}
    if p.consistency.weight > 0:
        consistency = consistency_loss(roles, point, v_fake, cond, p.consistency, params.model.eta, own).mean()
        loss = loss + p.consistency.weight * consistency
        values["fake_consistency"] = consistency.item()
    values["fake_grad_norm"] = fake.step(fake.gradients(loss))
    return values
