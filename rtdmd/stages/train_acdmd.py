"""`rtdmd train_acdmd`: stage one, Ambient-Consistent Distribution Matching Distillation (Algorithm 1, first half).

Reads the teacher, the text cache and the training prompts; writes the averaged generator, the fake score and curves.

Where this departs from the public code: the renoising time has no atoms and exceeds s by construction; the fake score's
velocity is computed once a step and serves both its own loss and the generator's; non-finite values stop the run.
DMD2 is `start: data` with `consistency.weight: 0`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rtdmd.backbones import load_backbone
from rtdmd.backbones.protocol import Conditioning
from rtdmd.common.files import save_tensors
from rtdmd.common.rng import integers
from rtdmd.config import Params
from rtdmd.flow.cps import cps_step
from rtdmd.pipeline.stage import Stage
from rtdmd.train.accumulate import Gradients, add_value, micro_batches
from rtdmd.train.adapters import ADAPTERS, AdapterBank, Average, Learner
from rtdmd.train.distributed.ranks import Ranks, open_together
from rtdmd.train.engine.diagnostics import at_level, latent_values
from rtdmd.train.engine.image_log import Pictures
from rtdmd.train.engine.journal import write_curves
from rtdmd.train.engine.loop import Loop
from rtdmd.train.engine.preflight import preflight
from rtdmd.train.losses import Draws, consistency_loss, fake_ambient_loss, matching_loss, renoised
from rtdmd.train.prompts import TrainingPrompts

NAME = "train_acdmd"


def run(root: Path = Path(".")) -> None:
    """Run the stage in ``root``."""
    with open_together(NAME, root) as (stage, ranks):
        train(stage, ranks)


def train(stage: Stage, ranks: Ranks) -> None:
    """Train generator and fake score, resuming from the run folder where it holds a checkpoint."""
    params, p = stage.params, stage.params.train_acdmd
    with ranks.sync_errors():
        backbone = load_backbone(params.model, text=False, vae=p.panel_every > 0, device=ranks.device, root=stage.root)
        names = early_roles(params)
        stacks = ADAPTERS[NAME] | {name: (name,) for name in names}
        roles = AdapterBank(backbone, params.adapter, stacks, stage.seed, p.compile)
        if roles.full and ranks.main:
            print(f"{NAME}: {roles.cost()}", file=sys.stderr)
        weights = roles.trainable("acdmd")
        average = Average(weights, p.ema_decay)
        generator = Learner.adamw(
            weights,
            p.lr_generator,
            p,
            warmup=p.warmup,
            average=average,
            role="generator",
            names=roles.parameter_names("acdmd"),
        )
        fake, *early = (
            Learner.adamw(
                roles.trainable(name),
                p.lr_fake,
                p,
                warmup=p.warmup,
                role=f"fake score ({name})",
                names=roles.parameter_names(name),
            )
            for name in ("fake", *names)
        )
        prompts = TrainingPrompts.open(stage, ranks.device, p.prompt_order)
    if p.sharding == "base":
        roles.shard(ranks)
    sigmas = backbone.sigmas(params.model.num_steps).to(ranks.device)
    others = dict(zip(names, early, strict=True))
    null = prompts.cache.null()
    players = Players(params, roles, generator, fake, average, null, sigmas, ranks, tuple(others.items()))
    learners = {"generator": generator, "fake": fake, **others}
    pictures = Pictures(p.panel_every, stage.run_dir, params, roles, backbone, prompts, sigmas)
    loop = Loop(stage.run_dir, p.iterations, p.save_every, p.log_every, learners, NAME, "iteration", ranks, p.keep)
    preflight(stage, ranks, [generator, fake], p.keep)
    mine = ranks.local_shard(p.batch_size)

    for step in loop:
        cond = prompts.conditioning(prompts.batch(step, p.batch_size, NAME)[mine.start : mine.stop])
        draws = Draws(stage.seed, NAME, step, tuple(mine), backbone.latent_shape(), ranks.device)
        try:
            turn = (step + 1) % p.generator_every == 0
            loop.log(step, iteration(players, cond, draws, generator_turn=turn), images=p.batch_size)
            if ranks.main:
                pictures.after(step + 1)
        except FloatingPointError as error:
            raise loop.fault(step, error) from error

    if ranks.main:
        write_outputs(stage, roles, average)
        write_curves(loop.rows, stage.output("curves.csv"))


@dataclass(frozen=True)
class Players:
    """Everything that an iteration works with; sigmas (K+1,)."""

    params: Params
    roles: AdapterBank
    generator: Learner
    fake: Learner
    average: Average
    null: Conditioning
    sigmas: Tensor
    ranks: Ranks = field(default_factory=Ranks)
    early: tuple[tuple[str, Learner], ...] = ()  # fake scores of the stops before the last, where each has its own

    def fake_of(self, stop: int) -> tuple[str, Learner]:
        """Role and learner of the fake score that learns the images of a stop."""
        return self.early[stop] if stop < len(self.early) else ("fake", self.fake)


def early_roles(params: Params) -> tuple[str, ...]:
    """Roles of the fake scores of the stops before the last; none where one serves all."""
    return tuple(f"early{k}" for k in range(params.model.num_steps - 1)) if params.train_acdmd.fake_per_step else ()


def iteration(players: Players, cond: Conditioning, draws: Draws, generator_turn: bool) -> dict[str, float]:
    """One iteration of Algorithm 1 on B prompts: a fake-score update and, on its turn, a generator update.

    cond and draws are those of this process's n prompts; they pass in micro-batches, and gradients and values add up.
    """
    params, ranks, p = players.params, players.ranks, players.params.train_acdmd
    stop = len(players.sigmas) - 2
    if p.stop == "random":
        stop = integers(0, len(players.sigmas) - 1, draws.seed, draws.stream, draws.step, "stop")
    name, fake = players.fake_of(stop)
    levels = players.sigmas[: stop + 2].clone()
    if p.start == "data":  # DMD2: the stopped step jumps to its estimate of the data
        levels[-1] = 0.0
    losses = "ambient + consistency" if p.consistency.weight > 0 else "ambient"
    sums = Sums(Gradients(fake, term=losses), Gradients(players.generator, term="matching"), name)
    with ranks.sync_errors():
        for rows in micro_batches(len(cond), p.micro_batch):
            part = draws.of(draws.samples[rows])
            add_part(players, cond.index(rows), part, levels, params.model.eta, generator_turn, sums)
    values, samples = ranks.all_reduce_sum(sums.values), torch.cat(sums.samples)
    sums.fake.all_reduce(ranks)
    if generator_turn:
        sums.generator.all_reduce(ranks)
        values["generator_grad_norm"] = sums.generator.step()
        values |= ranks.all_reduce_sum(sums.generator_values)
        values["sample_std"] = ranks.global_std(samples)
        # 6. Moving average of the generator.
        players.average.update()
    values["fake_grad_norm"] = sums.fake.step()
    norms = at_level(values, ("fake_grad_norm", "generator_grad_norm"), levels[-1].item())
    return values | norms | ranks.means(latent_values(samples))


@dataclass
class Sums:
    """What the parts of an iteration add up to, each weighted by its share of the B prompts."""

    fake: Gradients
    generator: Gradients
    fake_role: str = "fake"
    values: dict[str, float] = field(default_factory=dict)
    generator_values: dict[str, float] = field(default_factory=dict)
    samples: list[Tensor] = field(default_factory=list)


def add_part(
    players: Players,
    cond: Conditioning,
    draws: Draws,
    levels: Tensor,
    eta: float,
    generator_turn: bool,
    sums: Sums,
) -> None:
    """Steps 1 to 5 of Algorithm 1 on some of the B prompts, added to ``sums``."""
    params, roles, p = players.params, players.roles, players.params.train_acdmd
    share = len(cond) / p.batch_size
    # 1. Roll out with a random stop k ~ U{1..K}; only the last executed step carries gradient.
    x_s, s = roll_out(roles, cond, levels, eta, draws, gradient=generator_turn)
    # 2. Subinterval renoising x_s -> x_t.
    point = renoised(x_s, s, p.renoise, draws)
    # 3. Fake score: ambient flow matching,  4. and the consistency regulariser.
    v_fake = roles.velocity(sums.fake_role, point.x_t, point.t, cond)
    loss = fake_ambient_loss(point, v_fake, p.weighting, p.weight_clamp).mean()
    add_value(sums.values, "fake_ambient", share * loss.item())
    if p.consistency.weight > 0:
        consistency = consistency_loss(roles, point, v_fake, cond, p.consistency, eta, draws).mean()
        loss = loss + p.consistency.weight * consistency
        add_value(sums.values, "fake_consistency", share * consistency.item())
    sums.fake.add(share * loss)
    # 5. Generator, every n-th iteration: match the teacher along y_fake - y_teacher.
    if generator_turn:
        guided: dict[str, Any] = {"guidance": params.model.guidance, "null": players.null}
        with torch.no_grad():
            v_teacher = roles.velocity("teacher", point.x_t, point.t, cond, **guided)
        matching = matching_loss(x_s, point, v_fake, v_teacher, eta, draws).mean()
        sums.generator.add(share * matching)
        add_value(sums.generator_values, "matching", share * matching.item())
        add_value(sums.generator_values, "gap", share * (v_fake - v_teacher).square().mean().item())
    sums.samples.append(x_s.detach())


def roll_out(
    roles: AdapterBank, cond: Conditioning, levels: Tensor, eta: float, draws: Draws, gradient: bool
) -> tuple[Tensor, Tensor]:
    """(x_s (B, C, H, W), s (B,)): the generator's CPS chain from pure noise down ``levels``; the last step may carry
    gradient."""
    x = draws.normal("initial")
    steps = list(pairwise(levels))
    for k, (sigma, tau) in enumerate(steps):
        level, lower = sigma.expand(len(x)), tau.expand(len(x))
        with torch.set_grad_enabled(gradient and k == len(steps) - 1):
            v = roles.velocity("generator", x, level, cond)
            x = cps_step(x, v, level, lower, eta, draws.normal(f"transition-{k}"))
    return x, lower


def write_outputs(stage: Stage, roles: AdapterBank, average: Average) -> None:
    """The averaged generator and the fake score, with what is needed to read them."""
    adapter = stage.params.adapter
    about = {"stage": NAME, "mode": adapter.mode, "rank": str(adapter.rank), "alpha": str(adapter.alpha)}
    save_tensors(roles.state("fake"), stage.output("fake.safetensors"), about | {"role": "fake"})
    average.swap()
    save_tensors(roles.state("acdmd"), stage.output("generator.safetensors"), about | {"role": "generator"})
