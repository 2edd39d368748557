"""The loss terms that both stages are made of, each from the roles' velocities and the equations in ``rtdmd.flow``.

Shapes: x_s, x_t, noises (B, C, H, W); s, t (B,). ``Draws`` names every random number of a step, so that the terms are
functions of their arguments alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from rtdmd.common.rng import normal_batch, uniform_batch
from rtdmd.config.train_acdmd import SMALLEST_TIME
from rtdmd.flow.ambient import ambient_loss, ambient_target, draw_renoise_time, renoise
from rtdmd.flow.consistency import consistency_one_sample, consistency_two_sample, posterior_mean
from rtdmd.flow.cps import cps_step, eta_star
from rtdmd.flow.matching import dmd_direction, dmd_loss, projection
from rtdmd.flow.precision import require_finite

if TYPE_CHECKING:
    from rtdmd.backbones.protocol import Conditioning
    from rtdmd.config.train_acdmd import ConsistencyParams, RenoiseParams


class Velocities(Protocol):
    """What the terms need of ``AdapterBank`` (the analytic oracle offers the same)."""

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
        """Velocity of a role."""
        ...


@dataclass(frozen=True)
class Draws:
    """The random numbers of one step: B samples of shape (C, H, W), keyed by (seed, stage, step, sample, name)."""

    seed: int
    stream: str
    step: int
    samples: tuple[int, ...]
    shape: tuple[int, int, int]
    device: torch.device

    def _keys(self, name: str) -> list[tuple[int | str, ...]]:
        return [(self.seed, self.stream, self.step, sample, name) for sample in self.samples]

    def normal(self, name: str) -> Tensor:
        """(B, C, H, W) standard normal noise called ``name``."""
        return normal_batch(self.shape, self._keys(name)).to(self.device)

    def group_normal(self, groups: Tensor, name: str) -> Tensor:
        """(B, C, H, W) noise called ``name`` that all images of a group (B,) share."""
        numbers, row = torch.unique(groups, return_inverse=True)
        keys = [(self.seed, self.stream, self.step, "group", number, name) for number in numbers.tolist()]
        return normal_batch(self.shape, keys)[row].to(self.device)

    def of(self, samples: Sequence[int], stream: str | None = None) -> Draws:
        """The draws of some of the samples, of another stream where one is named."""
        return replace(self, samples=tuple(samples), stream=stream or self.stream)

    def among(self, chosen: Sequence[int], stream: str | None = None) -> tuple[list[int], Draws]:
        """Of the chosen samples of all processes those of this one, whose samples are consecutive, as rows of its own,
        and their draws."""
        first, count = self.samples[0], len(self.samples)
        rows = [sample - first for sample in chosen if 0 <= sample - first < count]
        return rows, self.of([self.samples[row] for row in rows], stream)

    def uniform(self, name: str) -> Tensor:
        """(B,) uniform numbers in [0, 1) called ``name``."""
        return uniform_batch(self._keys(name)).to(self.device)


@dataclass(frozen=True)
class Renoised:
    """A sample x_s, its level s, and the point x_t = α x_s + β z above it."""

    x_s: Tensor
    s: Tensor
    x_t: Tensor
    t: Tensor
    z: Tensor


def renoised(x_s: Tensor, s: Tensor, params: RenoiseParams, draws: Draws) -> Renoised:
    """Subinterval renoising of detached samples (method, stage one, step 2). FloatingPointError where one is not
    finite."""
    t = draw_renoise_time(draws.uniform("time"), s, params.margin, params.low, params.high)
    z = draws.normal("renoise")
    x_s = require_finite("the generator's sample x_s", x_s.detach())
    return Renoised(x_s, s, renoise(x_s, z, s, t), t, z)


def fake_ambient_loss(point: Renoised, v_fake: Tensor, weighting: str, clamp_max: float) -> Tensor:
    """Ambient flow matching of the fake score (method, stage one, step 3), (B,)."""
    require_finite("the fake score's velocity v_fake", v_fake)
    target = ambient_target(point.x_s, point.z, point.s, point.t)
    return ambient_loss(v_fake, target, point.s, point.t, weighting, clamp_max)  # type: ignore[arg-type]


def consistency_loss(
    roles: Velocities,
    point: Renoised,
    v_fake: Tensor,
    cond: Conditioning,
    params: ConsistencyParams,
    eta: float,
    draws: Draws,
) -> Tensor:
    """The consistency regulariser of the fake score (method, stage one, step 4), (B,). Both samples share one pass."""
    delta = params.delta_min + (params.delta_max - params.delta_min) * draws.uniform("delta")
    r = (point.t - delta).clamp(min=SMALLEST_TIME)
    level = eta_star(r, point.t) if params.kernel == "eta_star" else eta
    with torch.no_grad():
        x_r = cps_step(point.x_t, v_fake, point.t, r, level, draws.normal("consistency"))
    h_t = posterior_mean(point.x_t, v_fake, point.t)
    if params.estimator == "one_sample":
        h_r = posterior_mean(x_r, roles.velocity("fake", x_r, r, cond), r)
        return require_finite("the consistency term", consistency_one_sample(h_t, h_r))
    with torch.no_grad():
        other = cps_step(point.x_t, v_fake, point.t, r, level, draws.normal("consistency-2"))
    both, times = torch.cat([x_r, other]), torch.cat([r, r])
    h_r, h_r2 = posterior_mean(both, roles.velocity("fake", both, times, cond.cat([cond, cond])), times).chunk(2)
    return require_finite("the consistency term", consistency_two_sample(h_t, h_r, h_r2))


def matching_direction(
    point: Renoised, v_fake: Tensor, v_teacher: Tensor, eta: float, draws: Draws, normalise: bool = True
) -> Tensor:
    """g (B, C, H, W), along which x_s leaves the teacher's law: projections of x_t to s from both scores, same noise.

    ``normalise``: divide by the sample's mean distance to the teacher's projection (published); it changes the
    direction in low dimension only.
    """
    noise = draws.normal("projection")
    y_fake = projection(point.x_t, v_fake.detach(), point.t, point.s, eta, noise)
    y_teacher = projection(point.x_t, v_teacher, point.t, point.s, eta, noise)
    return dmd_direction(y_fake, y_teacher, point.x_s, normalise)


def matching_loss(x_s: Tensor, point: Renoised, v_fake: Tensor, v_teacher: Tensor, eta: float, draws: Draws) -> Tensor:
    """Distribution matching (method, stage one, step 5), (B,). ``x_s`` carries the generator's gradient."""
    return dmd_loss(x_s, matching_direction(point, v_fake, v_teacher, eta, draws))
