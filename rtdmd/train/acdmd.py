"""Stage one: Ambient-Consistent Distribution Matching Distillation (Algorithm 1, first half).

`recipe: published` is the public code's algorithm. By default (each a parameter) the renoising time has no atoms and
exceeds s by construction, and generator and fake score share a rollout, so that the fake score's velocity is computed
once for both losses. Departures without a parameter are in docs/verification.md. DMD2 is `renoise_from: data` with
`consistency.weight: 0`.

Shapes: B prompts of all processes, K steps of the sampler; x_s, x_t (B, C, H, W), s, t (B,), levels falling.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace
from itertools import pairwise

import torch
from torch import Tensor

from rtdmd.backbones.protocol import Backbone, Conditioning
from rtdmd.common.files import save_tensors
from rtdmd.config import Params
from rtdmd.flow.cps import cps_step
from rtdmd.pipeline.stage import Stage
from rtdmd.train.adapters import ADAPTERS, AdapterBank
from rtdmd.train.distributed.ranks import Ranks
from rtdmd.train.engine.diagnostics import at_level, latent_values
from rtdmd.train.learner import EMA, Gradients, Learner
from rtdmd.train.losses import (
    Draws,
    FakeScoreLoss,
    matching_loss,
    micro_batches,
    renoised,
    require_renoise_time,
    teacher_guidance,
)
from rtdmd.train.rounding import report_lost_update
from rtdmd.train.student_record import student_header

NAME = "train_acdmd"


@dataclass
class UpdateSums:
    """What the micro-batches of a turn add up to, each weighted by its share of the B prompts; None for who does not
    learn in it."""

    fake: Gradients | None
    generator: Gradients | None
    fake_values: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    generator_values: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    samples: list[Tensor] = field(default_factory=list)


class AcdmdTrainer:
    """Generator and fake score on one base, and one iteration of Algorithm 1 (`step`)."""

    def __init__(
        self,
        params: Params,
        backbone: Backbone,
        null: Conditioning,
        ranks: Ranks | None = None,
        adapters: AdapterBank | None = None,
    ) -> None:
        """``null``: conditioning of the empty prompt, one row; ``adapters``: in place of fresh ones."""
        p = params.train_acdmd
        # Fake scores of the stops before the last, where each has its own; none where one serves all.
        early = [f"early{k}" for k in range(params.model.num_steps - 1)] if p.fake_per_step else []
        stacks = ADAPTERS[NAME] | {name: (name,) for name in early}
        self.params = params
        self.p = p
        self.backbone = backbone
        self.null = null
        self.ranks = ranks or Ranks()
        self.adapters = adapters or AdapterBank(
            backbone, params.adapter, stacks, params.run.seed, p.compile, p.adapter_init
        )
        self.sigmas = backbone.sigmas(params.model.num_steps).to(backbone.device)  # (K+1,)
        # Levels that s can have; where x_s is always an image, 0 alone.
        only_images = p.renoise_from == "data" or p.rollout_stop == "last"
        require_renoise_time(NAME, p.renoise_time, self.sigmas[-1:] if only_images else self.sigmas[1:])
        self.fake_loss = FakeScoreLoss(self.adapters, p, params.model.eta)
        weights = self.adapters.trainable("acdmd")
        self.ema = EMA(weights, p.ema_decay)
        self.generator = Learner.adamw(weights, p.generator_optimizer, warmup=p.warmup, ema=self.ema)
        self.generator.named("generator", self.adapters.parameter_names("acdmd"))
        self.fakes: dict[str, Learner] = {}
        for name in ("fake", *early):
            self.fakes[name] = Learner.adamw(self.adapters.trainable(name), p.fake_optimizer, warmup=p.warmup)
            self.fakes[name].named(f"fake score ({name})", self.adapters.parameter_names(name))

    def step(self, cond: Conditioning, draws: Draws) -> dict[str, float]:
        """One iteration of Algorithm 1: a fake-score update and, every n-th iteration, a generator update, on one
        rollout or, as ``generator_rollout`` says, each on its own. cond and draws are those of this process's
        prompts."""
        updates_generator = (draws.step + 1) % self.p.generator_every == 0
        shared = self.p.generator_rollout == "shared"
        values = self.update(cond, draws, fake=True, generator=updates_generator and shared)
        if updates_generator and not shared:
            own = replace(draws, stream=f"{draws.stream}-generator")
            values |= self.update(cond, own, fake=False, generator=True)
        # 6. EMA of the generator.
        if updates_generator or self.p.ema_per == "iteration":
            self.ema.update()
        return values

    def update(self, cond: Conditioning, draws: Draws, fake: bool, generator: bool) -> dict[str, float]:
        """A rollout with its own stop, and the update of each learner that takes part in it. The prompts pass in
        micro-batches, and gradients and values add up."""
        p = self.p
        ranks = self.ranks
        stop = self.draw_stop(draws)
        fake_role = f"early{stop}" if f"early{stop}" in self.fakes else "fake"
        levels = self.sigmas[: stop + 2].clone()
        if p.renoise_from == "data":  # DMD2: the stopped step jumps to its estimate of the data
            levels[-1] = 0.0
        fake_term = "ambient + consistency" if p.consistency.weight > 0 else "ambient"
        sums = UpdateSums(
            Gradients(self.fakes[fake_role], term=fake_term) if fake else None,
            Gradients(self.generator, term="matching") if generator else None,
        )
        with ranks.sync_errors():
            for rows in micro_batches(len(cond), p.micro_batch):
                self.add_losses(sums, cond.index(rows), replace(draws, samples=draws.samples[rows]), levels, fake_role)

        # The updates, with the gradients of all processes.
        samples = torch.cat(sums.samples)
        values: dict[str, float] = {}
        if sums.fake is not None:
            values |= ranks.all_reduce(sums.fake_values)
            sums.fake.all_reduce(ranks)
        if sums.generator is not None:
            sums.generator.all_reduce(ranks)
            values["generator_grad_norm"] = self.generator.step(sums.generator.total, sums.generator.term)
            values |= ranks.all_reduce(sums.generator_values)
            values["sample_std"] = ranks.global_std(samples)
        if sums.fake is not None:
            values["fake_grad_norm"] = sums.fake.learner.step(sums.fake.total, sums.fake.term)
        norms = at_level(values, ("fake_grad_norm", "generator_grad_norm"), levels[-1].item())
        return values | norms | ranks.all_reduce(latent_values(samples), "mean")

    def add_losses(self, sums: UpdateSums, cond: Conditioning, draws: Draws, levels: Tensor, fake_role: str) -> None:
        """Steps 1 to 5 of Algorithm 1 on a micro-batch of the B prompts, added to ``sums``."""
        p = self.p
        eta = self.params.model.eta
        share = len(cond) / p.batch_size

        # 1. Roll out with a random stop k ~ U{1..K}; only the last executed step carries gradient.
        x_s, s = self.roll_out(cond, levels, draws, gradient=sums.generator is not None)

        # 2. Subinterval renoising x_s -> x_t.
        point = renoised(x_s, s, draws, p.renoise_time)

        # 3. Velocities there: the teacher's first, which leaves no graph, then the fake score's.
        if sums.generator is not None:
            guidance = teacher_guidance(self.params, p, draws)
            with torch.no_grad():
                v_teacher = self.adapters.velocity(
                    "teacher", point.x_t, point.t, cond, guidance=guidance, null=self.null
                )
        with torch.set_grad_enabled(sums.fake is not None):
            v_fake = self.adapters.velocity(fake_role, point.x_t, point.t, cond)

        # 5. Generator, every n-th iteration: match the teacher along y_fake - y_teacher. Before the fake score's
        # further passes, so that their graphs do not come on top of the generator's.
        if sums.generator is not None:
            matching = matching_loss(x_s, point, v_fake, v_teacher, eta, draws).mean()
            sums.generator.add(share * matching)
            sums.generator_values["matching"] += share * matching.item()
            sums.generator_values["gap"] += share * (v_fake - v_teacher).detach().square().mean().item()

        # 3. and 4. Fake score: ambient flow matching, and its consistency regulariser.
        if sums.fake is not None:
            fake_loss, terms = self.fake_loss(point, v_fake, cond, draws)
            for name, value in terms.items():
                sums.fake_values[name] += share * value
            sums.fake.add(share * fake_loss)
        sums.samples.append(x_s.detach())

    def draw_stop(self, draws: Draws) -> int:
        """The step after which the iteration's rollout ends, 0 to K - 1, the same on every process."""
        steps = len(self.sigmas) - 1
        return steps - 1 if self.p.rollout_stop == "last" else draws.integer(steps, "stop")

    def roll_out(self, cond: Conditioning, levels: Tensor, draws: Draws, gradient: bool) -> tuple[Tensor, Tensor]:
        """(x_s (B, C, H, W), s (B,)): the generator's CPS chain from pure noise down ``levels``; the last step may
        carry gradient."""
        x = draws.normal("initial")
        steps = list(pairwise(levels))
        for k, (sigma, tau) in enumerate(steps):
            level = sigma.expand(len(x))
            lower = tau.expand(len(x))
            with torch.set_grad_enabled(gradient and k == len(steps) - 1):
                v = self.adapters.velocity("generator", x, level, cond)
                x = cps_step(x, v, level, lower, self.params.model.eta, draws.normal(f"transition-{k}"))
        return x, lower

    def write_outputs(self, stage: Stage) -> None:
        """The EMA generator and the fake score, with what is needed to read them."""
        about = student_header(NAME, self.params)
        save_tensors(self.adapters.state("fake"), stage.output("fake.safetensors"), about | {"role": "fake"})
        self.ema.swap()
        if self.p.iterations:
            report_lost_update(self.params, NAME, self.adapters)
        save_tensors(self.adapters.state("acdmd"), stage.output("generator.safetensors"), about)
