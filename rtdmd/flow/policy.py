"""The policy-gradient half of stage two (paper, RTDMD): advantages, clipped ratio, SubGRPO's subset, reference KL."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from rtdmd.flow.path import at_least_float32, expand, require_finite

Baseline = Literal["group_mean", "leave_one_out"]
StdScope = Literal["batch", "group", "none"]


def group_advantages(
    rewards: Tensor,
    groups: Tensor,
    weights: Tensor,
    *,
    baseline: Baseline = "group_mean",
    std: StdScope = "batch",
    eps: float = 1e-4,
) -> Tensor:
    """Advantages (N,) of N images with R rewards: normalise each reward, weighted sum, scale over the batch.

    rewards (R, N); groups (N,) integer, images of one prompt share it; weights (R,). Per reward, r - baseline over
    (std + eps): baseline is the mean of the group or of its other members; std (population) is the whole batch's
    (public code) or the group's (paper). 'none' divides by nothing, neither here nor over the batch: advantages in
    the rewards' own units, whose policy gradient is the gradient of E Σ w r (statement T6). The public code also
    subtracts the batch mean of the sum; it is 0, since every group sums to 0, and subtracting its rounding would
    leave 1e-9 where a group's rewards are equal and the advantage is exactly 0. Raises ValueError on shapes or on a
    group of one with 'leave_one_out', FloatingPointError on a non-finite reward.
    """
    rewards, weights = at_least_float32(rewards, weights)
    if rewards.dim() != 2 or groups.shape != rewards.shape[1:] or weights.shape != rewards.shape[:1]:
        shapes = [tuple(tensor.shape) for tensor in (rewards, groups, weights)]
        raise ValueError(f"rewards, groups, weights must have shapes (R, N), (N,), (R,); got {shapes}")
    require_finite("rewards", rewards)
    centred = subtract_baseline(rewards, groups, baseline)
    if std == "none":
        return (weights[:, None] * centred).sum(0)
    if std == "batch":
        spread = rewards.std(dim=1, correction=0, keepdim=True)
    elif std == "group":
        spread = torch.sqrt(_group_mean(subtract_baseline(rewards, groups, "group_mean") ** 2, groups))
    else:
        raise ValueError(f"std {std!r} is unknown; known: batch, group, none")
    total = (weights[:, None] * centred / (spread + eps)).sum(0)
    return total / (total.std(correction=0) + eps)


def subtract_baseline(rewards: Tensor, groups: Tensor, baseline: Baseline) -> Tensor:
    """Rewards (R, N) minus the mean of their group, or of the group's other members ('leave_one_out', unbiased)."""
    centred = rewards - _group_mean(rewards, groups)
    if baseline == "group_mean":
        return centred
    if baseline != "leave_one_out":
        raise ValueError(f"baseline {baseline!r} is unknown; known: group_mean, leave_one_out")
    index, counts = torch.unique(groups, return_inverse=True, return_counts=True)[1:]
    if int(counts.min()) < 2:
        raise ValueError("leave_one_out needs at least two images in every group")
    size = counts[index].to(rewards.dtype)
    return centred * size / (size - 1)


def _group_mean(values: Tensor, groups: Tensor) -> Tensor:
    """Mean of (R, N) over each group, given back to every member: (R, N)."""
    index, counts = torch.unique(groups, return_inverse=True, return_counts=True)[1:]
    sums = values.new_zeros(values.shape[0], len(counts)).index_add_(1, index, values)
    return sums[:, index] / counts[index].to(values.dtype)


def clipped_policy_loss(
    logp_new: Tensor, logp_old: Tensor, advantages: Tensor, clip_range: float
) -> tuple[Tensor, Tensor, Tensor]:
    """PPO's -min(A ρ, A clip(ρ)) (B,), the ratio ρ = exp(logp_new - logp_old) (B,), and the clipped fraction ().

    `clip_range` c bounds the LOG-ratio: ρ in [e^-c, e^c]. For c << 1 that is the usual [1-c, 1+c] (they differ by
    c²/2); it stays meaningful for the true density, whose log-ratios grow with D, where 1 - c would be negative.
    State c in the units of the log-density that is passed in.
    """
    logp_new, logp_old, advantages = at_least_float32(logp_new, logp_old, advantages)
    log_ratio = logp_new - logp_old.detach()
    ratio = torch.exp(log_ratio)
    clipped = torch.exp(log_ratio.clamp(-clip_range, clip_range))
    loss = -torch.minimum(advantages * ratio, advantages * clipped)
    return loss, ratio, (log_ratio.detach().abs() > clip_range).to(ratio.dtype).mean()


def draw_step_subset(permutation: Tensor | Sequence[int], trained: int) -> tuple[int, ...]:
    """SubGRPO's steps of an epoch: the first `trained` of a permutation of the stochastic steps, ascending."""
    steps = [int(step) for step in permutation]
    if not 1 <= trained <= len(steps):
        raise ValueError(f"cannot train {trained} of {len(steps)} stochastic steps")
    return tuple(sorted(steps[:trained]))


def subset_factor(num_steps: int, trained: int) -> float:
    """(K-1)/M: makes the sum over M of the K-1 stochastic steps unbiased for all (paper; not in the public code)."""
    return (num_steps - 1) / trained


def gaussian_kl(mean_p: Tensor, mean_q: Tensor, std: Tensor) -> Tensor:
    """KL(N(mean_p, std² I) || N(mean_q, std² I)) = |mean_p - mean_q|² / (2 std²), (B,), nats, over all dimensions."""
    mean_p, mean_q, std = at_least_float32(mean_p, mean_q, std)
    return (((mean_p - mean_q) / expand(std, mean_p)) ** 2).flatten(1).sum(1) / 2
