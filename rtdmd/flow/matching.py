"""The direction that moves the generator's distribution towards the teacher's (paper, AC-DMD generator update).

x_t = α x_s + β z is projected back to s by one CPS step (`cps.cps_step`) from the teacher's velocity (y_ψ) and from
the fake score's (y_φ), with the same noise. Then (statement T4)

    y_φ - y_ψ = k (score_φ - score_ψ)(x_t),   k = [(1-s) t - s c (1-t)] t/(1-t) > 0,   c = cos(ηπ/2)

so descending along y_φ - y_ψ descends KL(q_t || p_t), with the factor κ = k (1-s)/(1-t) on the gradient through x_s.
"""

import math

import torch
from torch import Tensor

from rtdmd.flow.path import at_least_float32, expand, require_finite


def score_factor(s: Tensor, t: Tensor, eta: float) -> Tensor:
    """k (B,) of y_φ - y_ψ = k (score_φ - score_ψ), for s < t < 1 (own derivation, statement T4)."""
    s, t = at_least_float32(s, t)
    return ((1 - s) * t - s * math.cos(eta * math.pi / 2) * (1 - t)) * t / (1 - t)


def dmd_direction(y_fake: Tensor, y_teacher: Tensor, x_s: Tensor, normalise: bool) -> Tensor:
    """g = y_φ - y_ψ, divided by mean|x_s - y_ψ| of the sample if `normalise` (published). (B, C, H, W), no gradient.

    The normaliser is nearly constant in high dimension (relative std 0.02 at D = 1024, 1.7 at D = 2) and keeps the
    fixed point. Raises FloatingPointError naming the tensor that is not finite (the public code's nan_to_num would
    hide it).
    """
    y_fake, y_teacher, x_s = at_least_float32(y_fake.detach(), y_teacher.detach(), x_s.detach())
    require_finite("the fake score's projection y_fake", y_fake)
    require_finite("the teacher's projection y_teacher", y_teacher)
    require_finite("the generator's sample x_s", x_s)
    direction = y_fake - y_teacher
    if normalise:
        direction = direction / expand((x_s - y_teacher).abs().flatten(1).mean(1), direction)
    return require_finite("the distribution-matching direction g", direction)


def dmd_loss(x_s: Tensor, direction: Tensor) -> Tensor:
    """½ mean |x_s - stopgrad(x_s - g)|², (B,); its gradient in x_s is g/D. x_s, direction (B, C, H, W)."""
    x_s, direction = at_least_float32(x_s, direction)
    return 0.5 * ((x_s - (x_s - direction).detach()) ** 2).flatten(1).mean(1)


def matching_rewards(x: Tensor, direction: Tensor, groups: Tensor) -> Tensor:
    """Minus the matching objective of each image against its group's other members, (N,): matching as a reward.

    The objective F(x) = E_t κ_t log(q_t/p_t)(x_t), up to a constant, is not computable, but g/D is its gradient, and
    only differences within a group matter. The trapezoid rule along the line between two members i, j gives

        F(x_i) - F(x_j) = ½ (g_i + g_j)·(x_i - x_j) / D

    exactly where log(q_t/p_t) is quadratic; the mean over the other members j is F(x_i) less a leave-one-out
    baseline, from the directions that the last step computes anyway (own derivation, statement T8). Minus the size of
    g, the other reward that suggests itself, does not hold: a shifted distribution has a large |g| that is the same
    everywhere. x, direction (N, C, H, W); groups (N,) integer. Raises ValueError for a group of one.
    """
    x, direction = (part.flatten(1) for part in at_least_float32(x, direction))
    index, counts = torch.unique(groups.to(x.device), return_inverse=True, return_counts=True)[1:]
    if int(counts.min()) < 2:
        raise ValueError("matching as a reward needs at least two images in every group")
    size = counts.to(x.dtype)[:, None]
    x = x - _group_sum(x, index, len(counts))[index] / size[index]  # the differences stay; the cross term Σ x is 0
    along = (direction * x).sum(1, keepdim=True)
    pull = (_group_sum(direction, index, len(counts))[index] * x).sum(1, keepdim=True)
    total = size[index] * along + pull - _group_sum(along, index, len(counts))[index]
    return -(total / (2 * (size[index] - 1)))[:, 0] / x.shape[1]


def _group_sum(values: Tensor, index: Tensor, count: int) -> Tensor:
    """(N, D) summed over each group, (count, D)."""
    return values.new_zeros(count, values.shape[1]).index_add_(0, index, values)
