"""Sampling: the few-step CPS chain and, with η = 0, the Euler ODE sampler of the multi-step teacher.

Noise is drawn per (seed, prompt id, image index, step), so an image is the same whatever batch it is drawn in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from rtdmd.backbones.protocol import Conditioning
from rtdmd.common.rng import normal_batch
from rtdmd.flow.cps import cps_step

Velocity = Callable[[Tensor, Tensor, Conditioning], Tensor]  # (x (B, C, H, W), sigma (B,), cond) -> v (B, C, H, W)


@dataclass(frozen=True)
class ImageNoise:
    """Noise of B images, image i named by ``images[i]`` = (prompt id, index of the image among that prompt's)."""

    seed: int
    images: Sequence[tuple[int, int]]
    shape: tuple[int, int, int]
    device: torch.device | str = "cpu"

    def initial(self) -> Tensor:
        """x_1 (B, C, H, W), the start of the chain."""
        return self._draw("initial")

    def transition(self, step: int) -> Tensor:
        """The fresh noise (B, C, H, W) of transition ``step``, 0 the first."""
        return self._draw("transition", step)

    def _draw(self, *what: str | int) -> Tensor:
        return normal_batch(self.shape, [(self.seed, "sample", *image, *what) for image in self.images]).to(self.device)


def rollout(
    velocity: Velocity, x1: Tensor, cond: Conditioning, sigmas: Tensor, eta: float, noises: Tensor | None
) -> list[Tensor]:
    """All states [x_1, ..., x̂_0] of a CPS chain, K+1 tensors (B, C, H, W), from x1 at sigmas[0] down to sigmas[K] = 0.

    sigmas (K+1,); noises (K-1, B, C, H, W): one for each transition but the last, which is deterministic; None where
    eta = 0 (Euler). Gradients flow wherever ``velocity`` lets them.
    """
    if noises is None and eta != 0:
        raise ValueError(f"eta = {eta} needs noises, one for each transition but the last")
    states = [x1]
    sigmas = sigmas.to(x1.device)
    for k, (sigma, tau) in enumerate(pairwise(sigmas)):
        x = states[-1]
        rows = len(x1)
        fresh = torch.zeros_like(x) if noises is None or k == len(sigmas) - 2 else noises[k]
        level = sigma.expand(rows)
        states.append(cps_step(x, velocity(x, level, cond), level, tau.expand(rows), eta, fresh))
    return states


@torch.no_grad()
def sample(velocity: Velocity, noise: ImageNoise, cond: Conditioning, sigmas: Tensor, eta: float) -> Tensor:
    """Latents x̂_0 (B, C, H, W) of a chain over sigmas (K+1,) at the stochasticity eta; eta = 0 is the Euler sampler."""
    transitions = range(len(sigmas) - 2) if eta != 0 else range(0)
    noises = [noise.transition(k) for k in transitions]
    x1 = noise.initial()
    stacked = None if eta == 0 else torch.stack(noises) if noises else x1.new_empty(0, *x1.shape)
    return rollout(velocity, x1, cond, sigmas, eta, stacked)[-1]
