"""TDM-R1's surrogate reward (arXiv 2603.07700; public code Luo-Yihong/TDM-R1): a velocity beside teacher and fake score
that learns from scores without a gradient, and gives the generator one.

The surrogate is an adapter on the teacher, at first the teacher itself. On points of a group's chains it lowers its
matching loss for images of positive advantage and raises it for the others, as far as the group's preference asks
(`rtdmd.flow.preference`). log(p_surrogate / p_teacher) is then the reward, and its gradient at a renoised sample is the
difference of the two velocities, along which the generator is moved as matching moves it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rtdmd.flow.matching import dmd_loss
from rtdmd.flow.path import require_finite
from rtdmd.flow.preference import increases_distance, preference_weights
from rtdmd.train.learner import Gradients, Learner
from rtdmd.train.losses import (
    Draws,
    Renoised,
    matching_direction,
    micro_batches,
    renoised,
    scaled_guidance,
)
from rtdmd.train.rollout import CPU

if TYPE_CHECKING:
    from rtdmd.config.train_rtdmd import TrainRtdmdParams
    from rtdmd.train.adapters import AdapterBank
    from rtdmd.train.engine.protocols import StageTwoTrainer
    from rtdmd.train.learner import Terms
    from rtdmd.train.rollout import Rollout


class SurrogateReward:
    """The surrogate's learner, its update, and the term that it gives the generator."""

    def __init__(self, adapters: AdapterBank, p: TrainRtdmdParams) -> None:
        self.learner = Learner.adamw(adapters.trainable("surrogate"), p.surrogate.optimizer)
        self.learner.named("surrogate reward", adapters.parameter_names("surrogate"))

    def update(self, trainer: StageTwoTrainer, rollout: Rollout, advantages: Tensor, draws: Draws) -> dict[str, float]:
        """One update from whole groups of the rollout, all at one step of their chains; later steps come more often
        and weigh more (k + 1, as the public code draws and weighs them). ``advantages`` (N,): of this process's images.

        A first pass finds each group's preference, which weighs the second one's gradient; a group may be larger than
        a micro-batch.
        """
        p = trainer.p
        own = trainer.p.surrogate
        steps = len(rollout.sigmas) - 1
        drawn = draws.integer(steps * (steps + 1) // 2, "surrogate-step")
        k = next(step for step in range(steps) if drawn < (step + 1) * (step + 2) // 2)
        order = draws.permutation(p.prompts_per_epoch, "surrogate-prompts")
        chosen = [group * p.group_size + i for group in order[: own.prompts] for i in range(p.group_size)]
        rows, own_draws = draws.subset(chosen, f"{draws.stream}-surrogate-learns")
        groups = rollout.groups[rows]
        parts = list(micro_batches(len(rows), p.micro_batch))
        sums = {"surrogate_order": 0.0, "surrogate_distance": 0.0}
        gradients = Gradients(self.learner, term="surrogate")
        with trainer.ranks.sync_errors():
            points = _points(rollout, k + 1, rows, own_draws, own.train_min_sigma, groups)
            graded = advantages.to(CPU)[rows]
            losses, reference, distances = self._losses(trainer, rollout, points, rows, parts)
            asked = preference_weights(losses, reference, graded, groups, own.preference)
            weights = asked * graded
            sums["surrogate_order"] = float(asked.sum())
            sums["surrogate_distance"] = float(distances.sum())
        means = {name: value / len(chosen) for name, value in trainer.ranks.all_reduce(sums).items()}
        if means["surrogate_distance"] > own.bound:
            weights = weights.masked_fill(increases_distance(losses, reference, graded), 0.0)
        scale = (k + 1) / steps / len(chosen)
        with trainer.ranks.sync_errors():
            for part in parts:
                here = points.part(part, rollout.sigmas.device)
                cond = rollout.cond.index(rows[part])
                with torch.no_grad():
                    v_teacher = trainer.adapters.velocity("teacher", here.x_t, here.t, cond)
                v = trainer.adapters.velocity("surrogate", here.x_t, here.t, cond)
                loss = weights[part].to(v) * _distance(v, here.target) + own.anchor * _distance(v, v_teacher)
                gradients.add(scale * loss.sum())
        gradients.all_reduce(trainer.ranks)
        return means | {"surrogate_grad_norm": self.learner.step(gradients.total, gradients.term)}

    @torch.no_grad()
    def _losses(
        self, trainer: StageTwoTrainer, rollout: Rollout, points: Renoised, rows: list[int], parts: list[slice]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Matching losses of surrogate and teacher at the points, and the squared distance of the two, each (N,)."""
        found = torch.zeros(3, len(rows))
        for part in parts:
            here = points.part(part, rollout.sigmas.device)
            cond = rollout.cond.index(rows[part])
            v_teacher = trainer.adapters.velocity("teacher", here.x_t, here.t, cond)
            v = require_finite(
                "the surrogate's velocity", trainer.adapters.velocity("surrogate", here.x_t, here.t, cond)
            )
            target = here.target
            found[0, part] = _distance(v, target).to(CPU)
            found[1, part] = _distance(v_teacher, target).to(CPU)
            found[2, part] = _distance(v, v_teacher).to(CPU)
        return found[0], found[1], found[2]

    def gradient(self, trainer: StageTwoTrainer, rollout: Rollout, draws: Draws, terms: Terms, total: int) -> float:
        """The value of the generator's term through a random step of the rollout, and its gradient in ``terms``.
        ``total``: images of all processes."""
        p = trainer.p
        own = trainer.p.surrogate
        draws = replace(draws, stream=f"{draws.stream}-surrogate")
        k = draws.integer(len(rollout.sigmas) - 1, "step")
        points = _points(rollout, k + 1, list(range(len(rollout))), draws, own.reward_min_sigma)
        guidance = scaled_guidance(trainer.params.model.guidance, own.guidance)
        value = 0.0
        for rows in micro_batches(len(rollout), p.micro_batch):
            here = points.part(rows, rollout.sigmas.device)
            cond = rollout.cond.index(rows)
            with torch.no_grad():
                v_teacher = trainer.adapters.velocity("teacher", here.x_t, here.t, cond)
                v = trainer.adapters.velocity("surrogate", here.x_t, here.t, cond, guidance=guidance, null=trainer.null)
            own_draws = replace(draws, samples=draws.samples[rows])
            direction = matching_direction(here, v_teacher, v, trainer.eta, own_draws, p.normalise_matching)
            sample = here.x_s.detach().requires_grad_()
            loss = dmd_loss(sample, direction).sum() / total
            (grad_output,) = torch.autograd.grad(loss, sample)
            x_next, _ = rollout.repeat_step(trainer.adapters, rows, k, rollout.state(k, rows))
            terms.add({"surrogate": x_next}, {"surrogate": grad_output})
            value += loss.item()
        return value


def _points(
    rollout: Rollout, k: int, rows: list[int], draws: Draws, low: float, groups: Tensor | None = None
) -> Renoised:
    """States k of the rollout's ``rows``, whose draws these are, renoised above ``low``; images of one of ``groups``
    (N,) share their time and noise. On the host."""
    s = rollout.sigmas[k].to(CPU).expand(len(rows))
    return renoised(rollout.states[k][rows], s, replace(draws, device=CPU), low=low, groups=groups)


def _distance(one: Tensor, other: Tensor) -> Tensor:
    """Mean squared difference over the dimensions, (B,)."""
    return ((one - other) ** 2).flatten(1).mean(1)
