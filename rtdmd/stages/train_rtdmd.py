"""`rtdmd train_rtdmd`: stage two, reward-tilted distribution matching (Algorithm 1, second half).

Reads stage one's generator and fake score, the teacher, the text cache and the rewards; writes the averaged stage-two
adapter, which sits on top of stage one's, the curves, and what the scorers were.

Where this departs from the public code (each a parameter): the true Gaussian log-density; zero-advantage images leave
the policy term only, not the last step's; each term's gradient can be brought to norm 1 before its weight. `recipe:
published` refuses any setting that is not the public code's.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rtdmd.backbones import load_backbone
from rtdmd.backbones.protocol import Backbone, Conditioning
from rtdmd.common.files import save_tensors, write_json
from rtdmd.common.rng import permutation
from rtdmd.config import Params, TrainRtdmdParams
from rtdmd.flow.policy import draw_step_subset
from rtdmd.pipeline.stage import Stage
from rtdmd.rewards.panel import Panel, open_panel
from rtdmd.rewards.protocol import identities
from rtdmd.train.accumulate import Gradients, combine
from rtdmd.train.adapters import ADAPTERS, AdapterBank, Average, Learner
from rtdmd.train.baseline_losses import (
    early_helps,
    gain_weights,
    nft_gradient,
    step_advantages,
    stepwise_policy_gradient,
)
from rtdmd.train.distributed.ranks import Ranks, open_together
from rtdmd.train.engine.diagnostics import Pixels, advantage_values, latent_values, require_signal, reward_values
from rtdmd.train.engine.image_log import Pictures
from rtdmd.train.engine.journal import write_curves
from rtdmd.train.engine.loop import Loop, Saved
from rtdmd.train.engine.preflight import preflight
from rtdmd.train.engine.validation import Validation
from rtdmd.train.fake_score import fake_update
from rtdmd.train.last_step import Weigh, last_step_gradients
from rtdmd.train.losses import Draws, Velocities
from rtdmd.train.prompts import TrainingPrompts
from rtdmd.train.reinforce import (
    MatchingReward,
    Rollout,
    advantages_of,
    final_images,
    policy_gradient,
    require_on_policy,
    roll_out,
)
from rtdmd.train.student_record import read_student

NAME = "train_rtdmd"


def run(root: Path = Path(".")) -> None:
    """Run the stage in ``root``."""
    with open_together(NAME, root) as (stage, ranks):
        train(stage, ranks)


def train(stage: Stage, ranks: Ranks) -> None:
    """Reinforce the stage-one generator, resuming from the run folder where it holds a checkpoint."""
    p = stage.params.train_rtdmd
    aside = p.validation.prompts if p.validation.every else 0
    with ranks.sync_errors():
        prompts = TrainingPrompts.open(stage, ranks.device, p.prompt_order, aside)
        players = gather_players(stage, ranks, prompts.cache.null())
    if p.sharding == "base":
        players.roles.shard(ranks)
    held_out = prompts.conditioning(prompts.aside) if aside else None
    validation = Validation(p.validation, players, prompts.aside, held_out)
    saved: dict[str, Saved] = {"generator": players.generator, "fake": players.fake}
    saved |= {"validation": validation} if aside else {}
    pictures = Pictures(
        p.panel_every, stage.run_dir, players.params, players.roles, players.backbone, prompts, players.sigmas
    )
    loop = Loop(
        stage.run_dir, p.epochs, p.save_every, p.log_every, saved, NAME, "epoch", ranks, p.keep, validation.over
    )
    preflight(stage, ranks, [players.generator, players.fake], p.keep)
    mine = ranks.local_shard(p.prompts_per_epoch)
    images = tuple(range(mine.start * p.group_size, mine.stop * p.group_size))

    for step in loop:
        chosen = prompts.batch(step, p.prompts_per_epoch, NAME)[mine.start : mine.stop]
        records = [record for record in chosen for _ in range(p.group_size)]
        draws = Draws(stage.seed, NAME, step, images, players.backbone.latent_shape(), ranks.device)
        try:
            values = validation.before(step) | epoch(players, prompts.conditioning(records), records, draws)
            loop.log(step, values | validation.after(step + 1), images=p.prompts_per_epoch * p.group_size)
            with ranks.sync_errors():
                if ranks.main:
                    require_signal(loop.journal, p)
                    pictures.after(step + 1)
        except FloatingPointError as error:
            raise loop.fault(step, error) from error

    if ranks.main:
        write_outputs(stage, players, validation.put_best())
        write_curves(loop.rows, stage.output("curves.csv"))


def gather_players(stage: Stage, ranks: Ranks, null: Conditioning) -> Players:
    """Roles, learners and rewards of a run."""
    params, p = stage.params, stage.params.train_rtdmd
    backbone = load_backbone(params.model, text=False, vae=True, device=ranks.device, root=stage.root)
    roles = load_roles(stage, backbone)
    if roles.full and ranks.main:
        print(f"{NAME}: {roles.cost()}", file=sys.stderr)
    weights = roles.trainable("rtdmd")
    average = Average(weights, p.ema_decay)
    generator = Learner.adamw(
        weights,
        p.lr_generator,
        p,
        lr_decay=(p.lr_fall, p.epochs),
        average=average,
        role="generator",
        names=roles.parameter_names("rtdmd"),
    )
    fake = Learner.adamw(roles.trainable("fake"), p.lr_fake, p, role="fake score", names=roles.parameter_names("fake"))
    panel = open_panel(p.rewards, ranks.device, stage.root)
    sigmas = backbone.sigmas(params.model.num_steps).to(ranks.device)
    return Players(params, roles, generator, fake, average, null, sigmas, backbone, panel, ranks)


def write_outputs(stage: Stage, players: Players, chosen: dict[str, str]) -> None:
    """The averaged generator, with what is needed to read it (``chosen``: as which it was), and what the scorers
    were."""
    adapter = stage.params.adapter
    players.average.swap()
    about = {"stage": NAME, "mode": adapter.mode, "rank": str(adapter.rank)}
    about |= {"alpha": str(adapter.alpha), "role": "generator"} | chosen
    save_tensors(players.roles.state("rtdmd"), stage.output("generator.safetensors"), about)
    write_json(stage.output("scorers.json"), identities(players.panel.rewards.values()))


@dataclass(frozen=True)
class Players:
    """Everything that an epoch works with; sigmas (K+1,)."""

    params: Params
    roles: AdapterBank
    generator: Learner
    fake: Learner
    average: Average
    null: Conditioning
    sigmas: Tensor
    backbone: Backbone
    panel: Panel
    ranks: Ranks = field(default_factory=Ranks)


def load_roles(stage: Stage, backbone: Backbone) -> AdapterBank:
    """Roles of stage two: stage one's generator frozen below a new adapter, and stage one's fake score."""
    roles = AdapterBank(backbone, stage.params.adapter, ADAPTERS[NAME], stage.seed, stage.params.train_rtdmd.compile)
    for adapter, name in (("acdmd", "generator"), ("fake", "fake")):
        path = f"results/train_acdmd/{name}.safetensors"
        tensors = read_student(stage.input(path), stage.params, path)
        roles.load(adapter, tensors, path)
        if adapter == "acdmd" and roles.full:
            roles.load("rtdmd", tensors, path)
    return roles


def epoch(players: Players, cond: Conditioning, records: list[dict[str, Any]], draws: Draws) -> dict[str, float]:
    """One epoch of Algorithm 1 on N = M prompts x G images: roll-out, advantages, one generator update, fake updates.

    cond, records and draws are those of this process's images, whole groups, the images of a prompt next to each other.
    """
    roles, ranks, p, eta = players.roles, players.ranks, players.params.train_rtdmd, players.params.model.eta
    groups = torch.arange(p.prompts_per_epoch * p.group_size) // p.group_size
    mine, trained = slice(draws.samples[0], draws.samples[-1] + 1), trained_steps(p, draws)  # 3. SubGRPO
    last_step, pixels = LastStep.of(players, draws), Pixels()
    with ranks.sync_errors():
        # 1. Roll out M prompts x G images.
        rollout = roll_out(roles, cond, records, groups[mine], players.sigmas, trained, p, eta, draws)
        images = pixels.watch(final_images(rollout, players.backbone, p.micro_batch))
        # 2. Rewards; a slow scorer goes on beside 5., the last step's terms.
        with players.panel.scoring(images) as scoring:
            found = last_step.gradients(rollout) if p.matching_gain == 0 else None
            own_scores = scoring.scores(rollout.states[-1].device)
    # Advantages are over the images of all processes.
    scores = {name: ranks.all_gather(own) for name, own in own_scores.items()}
    advantages, credited = advantages_of(scores, groups, p), None
    if p.credit != "trajectory":
        credited = step_advantages(rollout, scores, players.panel, players.backbone, trained, p, eta, ranks)
    with ranks.sync_errors():
        if found is None:  # GDMD: rewards weigh the matching
            weigh = gain_weights(rollout, scores, mine, players.panel, players.backbone, p, last_step.rows)
            found = last_step.gradients(rollout, weigh)
        matching, backprop, held, sums = found
        # 4. Policy gradient over the trained steps, with the optional reference KL and matching as a reward.
        policy, anchor, means = policy_terms(players, rollout, advantages, credited, mine, trained, held)
        terms = {"policy": policy, "matching": matching, "backprop": backprop, "reference_kl": anchor}
        if p.weights.nft > 0:
            own = advantages[mine]
            terms["nft"], sums["nft"] = nft_gradient(roles, players.generator, rollout, own, p, draws, len(groups))
    # The generator's update, with the weighted sum of its terms over all processes.
    values = on_policy(means, ranks, p) | ranks.all_reduce_sum(sums) | generator_update(players, terms, draws.step)
    # 6. Fake-score updates from the cached roll-out.
    for update in range(p.fake_updates_per_epoch):
        values |= fake_update(roles, players.fake, rollout, p, eta, draws, update, ranks)
    return values | outcome(ranks, rollout, scores, advantages, groups, pixels)


def trained_steps(p: TrainRtdmdParams, draws: Draws) -> list[int]:
    """3. SubGRPO: the trained subset of the stochastic steps; elsewhere a group shares its noise."""
    order = permutation(len(p.candidate_steps), draws.seed, draws.stream, draws.step, "subset")
    return [p.candidate_steps[i] for i in draw_step_subset(order, p.trained_steps)]


@dataclass(frozen=True)
class LastStep:
    """5. Last step: distribution matching, and back-propagation of the differentiable rewards, on ``total`` images of
    all processes; ``rows`` of the roll-out are this one's, with their draws and DMDR's early helps."""

    players: Players
    roles: Velocities
    rows: list[int]
    draws: Draws
    total: int

    @staticmethod
    def of(players: Players, draws: Draws) -> LastStep:
        """The images that an epoch takes: all of them where matching is a reward, which every image gets."""
        p = players.params.train_rtdmd
        total = p.prompts_per_epoch * p.group_size
        chosen = list(range(total))
        if p.last_step_batch_size < total and p.matching_path != "reward":
            chosen = permutation(total, draws.seed, draws.stream, draws.step, "last-rows")[: p.last_step_batch_size]
        rows, own = draws.among(chosen)
        roles, own = early_helps(players.roles, own, p.dynamic)
        return LastStep(players, roles, rows, own, len(chosen))

    def gradients(
        self, rollout: Rollout, weigh: Weigh | None = None
    ) -> tuple[Gradients, Gradients, MatchingReward | None, dict[str, float]]:
        """`last_step_gradients` of these images; ``weigh``: a weight of each one's matching."""
        players, params, p = self.players, self.players.params, self.players.params.train_rtdmd
        rewards = [(spec.weight, players.panel.rewards[spec.name]) for spec in p.rewards if spec.differentiable]
        guided = {"guidance": params.model.guidance, "null": players.null}
        return last_step_gradients(
            *(self.roles, players.generator, rollout.take(self.rows), rewards, players.backbone, p, guided),
            *(params.model.eta, self.draws, self.total, weigh),
        )


def policy_terms(
    players: Players,
    rollout: Rollout,
    advantages: Tensor,
    credited: Mapping[int, Tensor] | None,
    mine: slice,
    trained: Sequence[int],
    held: MatchingReward | None,
) -> tuple[Gradients, Gradients, dict[str, float]]:
    """`policy_gradient` with an image's advantage for all its steps, or with ``credited``, one for every step."""
    roles, learner, p, eta = players.roles, players.generator, players.params.train_rtdmd, players.params.model.eta
    if credited is not None:
        return stepwise_policy_gradient(roles, learner, rollout, credited, mine, p, eta)
    return policy_gradient(roles, learner, rollout, advantages[mine], trained, p, eta, held, everyone=advantages)


def on_policy(means: Mapping[str, float], ranks: Ranks, p: TrainRtdmdParams) -> dict[str, float]:
    """The policy gradient's values over all processes. FloatingPointError where the ratio is not 1."""
    values = ranks.means(means) | {"ratio_error": max(ranks.gather(means["ratio_error"]))}
    require_on_policy(values["ratio_error"], p.clip_range)
    return values


def generator_update(players: Players, terms: Mapping[str, Gradients], step: int) -> dict[str, float]:
    """One update of the generator with the weighted sum of the terms of all processes, and of its average; norms."""
    p = players.params.train_rtdmd
    for gradients in terms.values():
        gradients.all_reduce(players.ranks)
    weights = dict(p.weights)
    gradient, norms = combine({name: (weights[name], term) for name, term in terms.items()}, p.gradient_scaling)
    norms["generator_grad_norm"] = players.generator.step(gradient)
    if (step + 1) % p.ema_every == 0:
        players.average.update()
    return norms


def outcome(
    ranks: Ranks,
    rollout: Rollout,
    scores: Mapping[str, Tensor],
    advantages: Tensor,
    groups: Tensor,
    pixels: Pixels,
) -> dict[str, float]:
    """What an epoch's images are like: scores, advantages and groups (N,) of all processes, latents and pixels."""
    values = {f"reward_{name}": score.mean().item() for name, score in scores.items()}
    values |= {"advantage_std": advantages.std().item(), "sample_std": ranks.global_std(rollout.states[-1])}
    values |= ranks.means(latent_values(rollout.states[-1]) | pixels.values())
    return values | reward_values(scores, groups) | advantage_values(advantages)
