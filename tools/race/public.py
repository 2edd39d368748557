"""The public code's updates of both stages, restated: its settings, its order of passes, and when it propagates.

Equations are `rtdmd.flow`'s, and rewards and decoder are ours; what is restated is what costs. Stage one's two turns
each have a rollout of their own, and a consistency sample is a pass of its own. Stage two propagates each trained step
and the last one by itself, batch by batch, and the graph of the last one has generator, decoder and rewards at once.
`tests/tools/test_race.py` compares every gradient with the trainers'.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from rtdmd.backbones import Conditioning
from rtdmd.config import Params
from rtdmd.flow.ambient import ambient_loss, ambient_target, consistency_two_sample
from rtdmd.flow.cps import cps_mean_std, cps_step, published_log_prob
from rtdmd.flow.path import x0_from_velocity
from rtdmd.flow.policy import clipped_policy_loss, group_advantages
from rtdmd.rewards.protocol import Reward
from rtdmd.train.losses import WEIGHT_CLAMP, Draws, matching_loss, micro_batches, renoised
from rtdmd.train.rtdmd import ADVANTAGE_EPS

Records = Sequence[Mapping[str, Any]]


Velocities = Callable[[str, Tensor, Tensor, Conditioning], Tensor]
"""(role, x, sigma, cond) -> v (B, C, H, W); the teacher's is guided."""


@dataclass
class Learnt:
    """What one role learns, and its AdamW."""

    parameters: list[nn.Parameter]
    optimizer: torch.optim.Optimizer
    max_grad_norm: float

    def step(self) -> None:
        """One clipped update from the gradients that were accumulated."""
        torch.nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


@dataclass(frozen=True)
class Public:
    """The public code's turns on these models.

    sigmas: (K+1,). decode: latents (B, C, H, W) to images in [0, 1]. rewards: by the names of ``params``.
    """

    params: Params
    velocity: Velocities
    learnt: Mapping[str, Learnt]
    sigmas: Tensor
    decode: Callable[[Tensor], Tensor]
    rewards: Mapping[str, Reward]

    # Stage one.

    def update_fake(self, cond: Conditioning, draws: Draws, stop: int) -> None:
        """One update of the fake score, on a rollout that ends after step ``stop``."""
        with torch.no_grad():
            x_s, s = self.stopped(cond, draws, stop)
        self.fake_loss(x_s, s, cond, draws, self.params.train_acdmd.consistency.weight).backward()
        self.learnt["fake"].step()

    def update_generator(self, cond: Conditioning, draws: Draws, stop: int) -> None:
        """One update of the generator, on a rollout whose last step has a graph."""
        x_s, s = self.stopped(cond, draws, stop)
        self.matching(x_s, s, cond, draws).backward()
        self.learnt["generator"].step()

    def stopped(self, cond: Conditioning, draws: Draws, stop: int) -> tuple[Tensor, Tensor]:
        """(x_s (B, C, H, W), s (B,)): the rollout after step ``stop``; only that step may have a graph."""
        x = draws.normal("initial")
        graph = torch.is_grad_enabled()
        for k in range(stop + 1):
            sigma, tau = (self.sigmas[i].expand(len(x)) for i in (k, k + 1))
            with torch.set_grad_enabled(graph and k == stop):
                v = self.velocity("generator", x, sigma, cond)
                x = cps_step(x, v, sigma, tau, self.params.model.eta, draws.normal(f"transition-{k}"))
        return x, tau

    def fake_loss(self, x_s: Tensor, s: Tensor, cond: Conditioning, draws: Draws, weight: float) -> Tensor:
        """Ambient flow matching, and ``weight`` times the two-sample consistency term: three passes with a graph."""
        eta = self.params.model.eta
        point = renoised(x_s, s, draws, "clamped")
        v = self.velocity("fake", point.x_t, point.t, cond)
        target = ambient_target(point.x_s, point.z, point.s, point.t)
        loss = ambient_loss(v, target, point.s, point.t, "clamp", WEIGHT_CLAMP).mean()
        if weight == 0:
            return loss
        r = (point.t - (torch.floor(200 * draws.uniform("delta")) + 1) / 1000).clamp(min=0.0)
        ends = list[Tensor]()
        for name in ("consistency", "consistency-2"):
            with torch.no_grad():
                x_r = cps_step(point.x_t, v, point.t, r, eta, draws.normal(name))
            ends.append(x0_from_velocity(x_r, self.velocity("fake", x_r, r, cond), r))
        return loss + weight * consistency_two_sample(x0_from_velocity(point.x_t, v, point.t), *ends).mean()

    def matching(self, x_s: Tensor, s: Tensor, cond: Conditioning, draws: Draws) -> Tensor:
        """Distribution matching of x_s, whose graph waits while teacher and fake score pass."""
        point = renoised(x_s, s, draws, "clamped")
        with torch.no_grad():
            v_teacher = self.velocity("teacher", point.x_t, point.t, cond)
            v_fake = self.velocity("fake", point.x_t, point.t, cond)
        return matching_loss(x_s, point, v_fake, v_teacher, self.params.model.eta, draws).mean()

    # Stage two.

    def epoch(self, cond: Conditioning, records: Records, groups: Tensor, trained: Sequence[int], draws: Draws) -> None:
        """Rollout and rewards, one update of the fake score on the final images, one of the generator."""
        states, scores = self.sample(cond, records, groups, trained, draws)
        self.fake_update(states[-1], cond, draws)
        p = self.params.train_rtdmd
        weights = torch.tensor([spec.weight for spec in p.rewards])
        advantages = group_advantages(scores, groups, weights, eps=ADVANTAGE_EPS)
        advantages = advantages.clamp(-p.advantage_clip, p.advantage_clip)
        steps = [*sorted(trained), len(self.sigmas) - 2]
        batches = list(self.batches(len(cond)))
        for rows in batches:
            for k in steps:
                part = [state[rows] for state in states]
                loss = self.step_loss(k, part, cond.index(rows), records[rows], advantages[rows], rows_of(draws, rows))
                (loss / (len(batches) * len(steps))).backward()
        self.learnt["generator"].step()

    def batches(self, count: int) -> Iterator[slice]:
        return micro_batches(count, self.params.train_rtdmd.micro_batch)

    @torch.no_grad()
    def sample(
        self, cond: Conditioning, records: Records, groups: Tensor, trained: Sequence[int], draws: Draws
    ) -> tuple[list[Tensor], Tensor]:
        """States of all images at the K+1 levels, and their scores (R, N). A group shares the noise of the steps that
        are not trained."""
        p = self.params.train_rtdmd
        parts = list[list[Tensor]]()
        scores = list[Tensor]()
        for rows in self.batches(len(cond)):
            own = rows_of(draws, rows)
            text = cond.index(rows)
            chain = [own.normal("initial")]
            for k, (sigma, tau) in enumerate(pairwise(self.sigmas)):
                x = chain[-1]
                level = sigma.expand(len(x))
                lower = tau.expand(len(x))
                noise = own.normal(f"transition-{k}", None if k in trained else groups[rows])
                v = self.velocity("generator", x, level, text)
                chain.append(cps_step(x, v, level, lower, self.params.model.eta, noise))
            parts.append(chain)
            images = self.decode(chain[-1])
            scores.append(torch.stack([self.score(spec.name, images, records[rows]) for spec in p.rewards]))
        return [torch.cat(level) for level in zip(*parts, strict=True)], torch.cat(scores, dim=1)

    def score(self, name: str, images: Tensor, records: Records) -> Tensor:
        """Of images (B, 3, H, W) by one reward, (B,)."""
        prompts = [record["prompt"] for record in records]
        metadata = [record["metadata"] for record in records]
        return self.rewards[name].score(images, prompts, metadata).float()

    def fake_update(self, images: Tensor, cond: Conditioning, draws: Draws) -> None:
        """One update from all images of the rollout, in batches."""
        weight = self.params.train_rtdmd.consistency.weight
        for rows in self.batches(len(images)):
            s = torch.zeros(len(images[rows]))
            own = rows_of(draws, rows, f"{draws.stream}-fake-0")
            loss = self.fake_loss(images[rows], s, cond.index(rows), own, weight)
            (loss * len(s) / len(images)).backward()
        self.learnt["fake"].step()

    def step_loss(
        self,
        k: int,
        states: Sequence[Tensor],
        cond: Conditioning,
        records: Records,
        advantages: Tensor,
        draws: Draws,
    ) -> Tensor:
        """The loss of one step of a batch: the policy's, or, of the last step, matching and the rewards' hinge."""
        p = self.params.train_rtdmd
        x = states[k]
        sigma, tau = (self.sigmas[i].expand(len(x)) for i in (k, k + 1))
        v = self.velocity("generator", x, sigma, cond)
        if k < len(self.sigmas) - 2:
            log_prob = published_log_prob(states[k + 1], cps_mean_std(x, v, sigma, tau, self.params.model.eta)[0])
            loss, _, _ = clipped_policy_loss(log_prob, log_prob.detach(), advantages, p.clip_range)
            return p.weights.policy * loss.mean()
        x0 = x0_from_velocity(x, v, sigma)
        loss = p.weights.matching * self.matching(x0, tau, cond, draws)
        images = self.decode(x0)
        graded = [spec for spec in p.rewards if spec.differentiable]
        total = torch.stack([spec.weight * self.score(spec.name, images, records) for spec in graded]).sum(0)
        return loss + p.weights.backprop * torch.relu(p.backprop_margin - total).mean()


def rows_of(draws: Draws, rows: slice, stream: str | None = None) -> Draws:
    """The random numbers of some of the samples."""
    return draws.subset(draws.samples[rows], stream)[1]
