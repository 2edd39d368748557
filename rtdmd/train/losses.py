"""The loss terms that both stages are made of, each from the adapters' velocities and the equations in ``rtdmd.flow``,
and what the terms read and write: the named random numbers of a step, renoised samples.

Shapes: x_s, x_t, noises (B, C, H, W); s, t (B,). ``Draws`` names every random number of a step, so that the terms are
functions of their arguments alone. Passes go in micro-batches, always in the same order, so that only memory and
rounding depend on their size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from rtdmd.common.errors import UserError
from rtdmd.common.rng import Key, integers, key_seed, normal_batch, permutation, torch_generator
from rtdmd.flow.ambient import (
    ambient_loss,
    ambient_target,
    clamped_renoise_time,
    consistency_one_sample,
    consistency_two_sample,
    draw_renoise_time,
    renoise,
)
from rtdmd.flow.cps import cps_step, eta_star
from rtdmd.flow.matching import dmd_direction, dmd_loss
from rtdmd.flow.path import require_finite, x0_from_velocity

if TYPE_CHECKING:
    from rtdmd.backbones.protocol import Conditioning
    from rtdmd.config import Params
    from rtdmd.config.train_acdmd import TrainAcdmdParams
    from rtdmd.config.train_rtdmd import TrainRtdmdParams
    from rtdmd.config.training import TrainingParams
    from rtdmd.train.adapters import AdapterBank

# Constants of the public code that neither the paper's ablations nor any method varies.
RENOISE_MARGIN = 0.01  # smallest distance of the renoising time t above s [σ]
RENOISE_LOW = 0.02  # clamp of t [σ]
RENOISE_HIGH = 0.98
WEIGHT_CLAMP = 10.0  # largest weight of the ambient loss with `weighting: clamp`
MIN_DELTA = 0.001  # backward step of a consistency pair [σ], 1 to 200 of 1000
MAX_DELTA = 0.2
MIN_TIME = 1e-3  # σ of the earlier point of a consistency pair with `delta: uniform`


@dataclass(frozen=True)
class Draws:
    """The random numbers of one step: B samples of shape (C, H, W), keyed by (seed, stage, step, sample, name)."""

    seed: int
    stream: str
    step: int
    samples: tuple[int, ...]
    shape: tuple[int, int, int]
    device: torch.device

    def normal(self, name: str, groups: Tensor | None = None) -> Tensor:
        """(B, C, H, W) standard normal noise called ``name``; all images of a group share it where ``groups`` (B,) are
        given."""
        if groups is None:
            keys = [(self.seed, self.stream, self.step, sample, name) for sample in self.samples]
            return normal_batch(self.shape, keys).to(self.device)
        numbers, row = torch.unique(groups, return_inverse=True)
        shared = [(self.seed, self.stream, self.step, "group", number, name) for number in numbers.tolist()]
        return normal_batch(self.shape, shared)[row].to(self.device)

    def subset(self, chosen: Sequence[int], stream: str | None = None) -> tuple[list[int], Draws]:
        """Of the chosen samples of all processes those of this one, whose samples are consecutive, as rows of its own,
        and their draws, of another stream where one is named."""
        first = self.samples[0]
        count = len(self.samples)
        rows = [sample - first for sample in chosen if 0 <= sample - first < count]
        own = tuple(self.samples[row] for row in rows)
        return rows, replace(self, samples=own, stream=stream or self.stream)

    def integer(self, high: int, *names: Key) -> int:
        """One integer in [0, high), the same for all samples and processes."""
        return integers(0, high, self.seed, self.stream, self.step, *names)

    def permutation(self, count: int, *names: Key) -> list[int]:
        """One permutation of ``range(count)``, likewise."""
        return permutation(count, self.seed, self.stream, self.step, *names)

    def uniform(self, name: str) -> Tensor:
        """(B,) uniform numbers in [0, 1) called ``name``."""
        seeds = [key_seed(self.seed, self.stream, self.step, sample, name) for sample in self.samples]
        values = torch.tensor([seed / 2.0**63 for seed in seeds], dtype=torch.float64)
        return values.float().clamp_(max=1.0 - 2.0**-24).to(self.device)  # below 1 after rounding too


@dataclass(frozen=True)
class Renoised:
    """A sample x_s, its level s, and the point x_t = α x_s + β z above it."""

    x_s: Tensor
    s: Tensor
    x_t: Tensor
    t: Tensor
    z: Tensor

    @property
    def target(self) -> Tensor:
        """The velocity that the sample asks for at the point."""
        return ambient_target(self.x_s, self.z, self.s, self.t)

    def part(self, rows: slice, device: torch.device) -> Renoised:
        """Some of the samples, on a device."""
        parts = (one[rows].to(device) for one in (self.x_s, self.s, self.x_t, self.t, self.z))
        return Renoised(*parts)


def require_renoise_time(section: str, distribution: Literal["uniform", "clamped"], levels: Tensor) -> None:
    """UserError where one of the ``levels`` that s can have leaves no room below the clamp of the published times."""
    highest = levels.max().item()
    if distribution == "clamped" and highest >= RENOISE_HIGH:
        raise UserError(
            f"{section}.renoise_time: clamped, to {RENOISE_HIGH:g}, but the sampler's levels reach {highest:.3f}, where"
            " no time above them is left; allowed: uniform (with recipe: custom)"
        )


def renoised(
    x_s: Tensor,
    s: Tensor,
    draws: Draws,
    distribution: Literal["uniform", "clamped"] = "uniform",
    low: float = 0.0,
    groups: Tensor | None = None,
) -> Renoised:
    """Subinterval renoising of detached samples (method, stage one, step 2) to times of a distribution, none below
    ``low`` [σ]; images of one of ``groups`` (B,) share time and noise. FloatingPointError where a sample is not
    finite."""
    draw = clamped_renoise_time if distribution == "clamped" else draw_renoise_time
    shared = draws if groups is None else replace(draws, samples=tuple(groups.tolist()))
    t = draw(shared.uniform("time"), s, RENOISE_MARGIN, max(RENOISE_LOW, low), RENOISE_HIGH)
    z = draws.normal("renoise", groups)
    x_s = require_finite("the generator's sample x_s", x_s.detach())
    return Renoised(x_s, s, renoise(x_s, z, s, t), t, z)


def scaled_guidance(weight: float, share: float) -> float:
    """A guidance weight with a share of what is beyond 1; all of it is the weight to the last bit."""
    return 1 + share * (weight - 1)


@dataclass(frozen=True)
class FakeScoreLoss:
    """What the fake score learns from, in both stages; ``p``: the stage's section, ``eta``: the sampler's."""

    adapters: AdapterBank
    p: TrainAcdmdParams | TrainRtdmdParams
    eta: float

    def __call__(
        self, point: Renoised, v_fake: Tensor, cond: Conditioning, draws: Draws
    ) -> tuple[Tensor, dict[str, float]]:
        """Ambient flow matching (method, stage one, step 3) and, where it has a weight, the consistency regulariser
        (step 4): their weighted sum (), a mean over the samples, and the value of each."""
        require_finite("the fake score's velocity v_fake", v_fake)
        loss = ambient_loss(
            v_fake,
            point.target,  # freed before the regulariser's passes
            point.s,
            point.t,
            self.p.weighting,
            WEIGHT_CLAMP,
        ).mean()
        values = {"fake_ambient": loss.item()}
        p = self.p.consistency
        if p.weight == 0:
            return loss, values
        u = draws.uniform("delta")
        if p.delta == "integer":
            steps = torch.floor(u * round(MAX_DELTA / MIN_DELTA)) + 1
            r = (point.t - MIN_DELTA * steps).clamp(min=0.0)
        else:
            r = (point.t - (MIN_DELTA + (MAX_DELTA - MIN_DELTA) * u)).clamp(min=MIN_TIME)
        level = eta_star(r, point.t) if p.kernel == "eta_star" else self.eta
        with torch.no_grad():
            x_r = cps_step(point.x_t, v_fake, point.t, r, level, draws.normal("consistency"))
        h_t = x0_from_velocity(point.x_t, v_fake, point.t)
        if p.estimator == "one_sample":
            h_r = x0_from_velocity(x_r, self.adapters.velocity("fake", x_r, r, cond), r)
            terms = consistency_one_sample(h_t, h_r)
        else:
            with torch.no_grad():
                other = cps_step(point.x_t, v_fake, point.t, r, level, draws.normal("consistency-2"))
            both = torch.cat([x_r, other])  # one pass for both samples
            times = torch.cat([r, r])
            v_both = self.adapters.velocity("fake", both, times, cond.cat([cond, cond]))
            h_r, h_r2 = x0_from_velocity(both, v_both, times).chunk(2)
            terms = consistency_two_sample(h_t, h_r, h_r2)
        consistency = require_finite("the consistency term", terms).mean()
        values["fake_consistency"] = consistency.item()
        return loss + p.weight * consistency, values


def teacher_guidance(params: Params, p: TrainingParams, draws: Draws) -> float:
    """The weight of the teacher's guidance in matching: model.guidance or, with a ``guidance_range``, drawn from it,
    the same for all images and processes of an update."""
    if p.guidance_range is None:
        return params.model.guidance
    low, high = p.guidance_range
    generator = torch_generator(draws.seed, draws.stream, draws.step, "guidance")
    return low + (high - low) * torch.rand((), generator=generator, dtype=torch.float64).item()


def matching_direction(
    point: Renoised, v_fake: Tensor, v_teacher: Tensor, eta: float, draws: Draws, normalise: bool = True
) -> Tensor:
    """g (B, C, H, W), along which x_s leaves the teacher's distribution: projections of x_t to s from both scores, same
    noise.

    ``normalise``: divide by the sample's mean distance to the teacher's projection (published); it changes the
    direction in low dimension only.
    """
    noise = draws.normal("projection")
    y_fake = cps_step(point.x_t, v_fake.detach(), point.t, point.s, eta, noise)
    y_teacher = cps_step(point.x_t, v_teacher, point.t, point.s, eta, noise)
    return dmd_direction(y_fake, y_teacher, point.x_s, normalise)


def matching_loss(x_s: Tensor, point: Renoised, v_fake: Tensor, v_teacher: Tensor, eta: float, draws: Draws) -> Tensor:
    """Distribution matching (method, stage one, step 5), (B,). ``x_s`` carries the generator's gradient."""
    return dmd_loss(x_s, matching_direction(point, v_fake, v_teacher, eta, draws))


def micro_batches(count: int, size: int) -> Iterator[slice]:
    """Consecutive slices of at most ``size``."""
    for first in range(0, count, size):
        yield slice(first, min(first + size, count))
