"""DMDR's two early helps, both fading by a cosine over a progress p from 0 to 1 (arXiv 2511.13649; its public code).

Dynamic distribution guidance: the teacher carries the fake score's adapter at a scale that falls to 0, so that the two
distributions overlap at first. Dynamic renoising: times lean towards high noise at first and end uniform.
"""

import math

import torch
from scipy.special import betaincinv
from torch import Tensor

from rtdmd.flow.path import at_least_float32

BETA = (4.0, 1.5)  # of the renoising time at the start (DMDR); (1, 1) is uniform


def annealed_scale(start: float, progress: float) -> float:
    """start · ½ (1 + cos πp), 0 from p = 1 on: the scale of the fake score's adapter on the teacher."""
    return 0.0 if progress >= 1 else start * 0.5 * (1 + math.cos(math.pi * progress))


def annealed_uniform(u: Tensor, progress: float) -> Tensor:
    """Quantiles (B,) of Beta(4 -> 1, 1.5 -> 1) at u (B,) in [0, 1); u itself from p = 1 on.

    Both parameters fall to 1 as ½ (1 + cos πp) does (the public code's). Draws from the distribution where u is
    uniform; `ambient.draw_renoise_time` maps them to the interval of times.
    """
    (u,) = at_least_float32(u)
    if progress >= 1:
        return u
    left = annealed_scale(1.0, progress)
    a, b = (1 + (value - 1) * left for value in BETA)
    return torch.from_numpy(betaincinv(a, b, u.double().cpu().numpy())).to(u).clamp(max=1 - 2.0**-24)
