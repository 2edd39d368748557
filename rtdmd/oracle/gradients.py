"""T6 and T7: is the policy gradient of stage two the gradient of the expected reward, and what does sharing noise buy?

A generator of eight parameters, v_θ(x, σ) = v(x, σ) + A x + b + σ d with the exact velocity v, rolls out K = 4 CPS
steps. Every group of chains has its own copy of θ = 0, so one backward pass gives one independent gradient estimate a
group. Legend: G groups, N members per group, B = G N chains, M trained steps.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from rtdmd.flow import cps, policy
from rtdmd.flow.path import expand
from rtdmd.oracle.identities import reward
from rtdmd.oracle.mixture import Mixture, ring
from rtdmd.oracle.setting import Setting

LEVELS = (1.0, 0.9, 0.75, 0.5, 0.0)
STEPS = len(LEVELS) - 1
ETA = 0.9
PARAMETERS = 8

Velocity = Callable[[Tensor, Tensor], Tensor]
"""(x (B, d), sigma (B,)) -> v (B, d)."""

Density = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x, mean, std) -> log-density (B,)."""


@dataclass(frozen=True)
class Chains:
    """Noises of G groups of N chains: initial (B, d), transitions (K-1, B, d), and the group of each chain (B,)."""

    initial: Tensor
    transitions: Tensor
    groups: Tensor


def draw_chains(setting: Setting, groups: int, members: int, dims: int, *key: str) -> Chains:
    """Independent noises for every chain."""
    count = groups * members
    index = torch.arange(groups, device=setting.device).repeat_interleave(members)
    noises = setting.normal((STEPS, count, dims), *key)
    return Chains(noises[0], noises[1:], index)


def share(noise: Tensor, groups: Tensor) -> Tensor:
    """Every chain of a group gets the noise (B, d) of the group's first chain."""
    members = len(groups) // int(groups[-1] + 1)
    return noise[groups * members]


def shared_chains(chains: Chains, trained: Tensor, initial: bool) -> Chains:
    """SubGRPO: one noise a group at the steps that its group does not train; trained (K-1, B) bool."""
    shared = torch.stack([share(noise, chains.groups) for noise in chains.transitions])
    start = share(chains.initial, chains.groups) if initial else chains.initial
    return Chains(start, torch.where(trained[..., None], chains.transitions, shared), chains.groups)


def roll_out(
    velocity: Velocity, chains: Chains, *, pathwise: bool, log_prob: Density = cps.gaussian_log_prob
) -> tuple[Tensor, Tensor]:
    """Last sample x̂_0 (B, d) and log-densities of the stochastic transitions (K-1, B).

    pathwise: gradients run through the whole chain; otherwise every sample but the last is cut off, as in stage two.
    """
    x = chains.initial
    densities: list[Tensor] = []
    for k in range(STEPS):
        sigma, tau = (x.new_full((len(x),), LEVELS[i]) for i in (k, k + 1))
        mean, std = cps.cps_mean_std(x, velocity(x, sigma), sigma, tau, ETA)
        if k == STEPS - 1:
            return mean, torch.stack(densities)
        x = mean + expand(std, mean) * chains.transitions[k]
        x = x if pathwise else x.detach()
        densities.append(log_prob(x, mean, std))
    raise AssertionError("unreachable: the last step returns")


def hybrid_loss(
    final: Tensor, densities: Tensor, chains: Chains, trained: Tensor, *, factor: float, baseline: policy.Baseline
) -> Tensor:
    """Minus the surrogate of E r for each chain (B,): score function on the trained steps, pathwise on the last."""
    gained = reward(final)
    advantages = policy.subtract_baseline(gained.detach()[None], chains.groups, baseline)[0]
    terms = [policy.clipped_policy_loss(density, density.detach(), advantages, 1e-3)[0] for density in densities]
    return factor * (torch.stack(terms) * trained).sum(0) - gained


def perturbed(setting: Setting, mixture: Mixture, theta: Tensor, prompt: Tensor) -> Velocity:
    """v_θ with one row of parameters a chain, theta (B, 8)."""

    def velocity(x: Tensor, sigma: Tensor) -> Tensor:
        turned = torch.einsum("bde,be->bd", theta[:, :4].reshape(-1, 2, 2), x)
        return (
            mixture.velocity(x.to(setting.network), sigma, prompt).to(setting.real)
            + turned
            + theta[:, 4:6]
            + sigma[:, None] * theta[:, 6:]
        )

    return velocity


def draw_trained(setting: Setting, groups: int, members: int, count: int, *key: str) -> Tensor:
    """(K-1, B) bool: every group draws its own `count` trained steps."""
    order = torch.rand(groups, STEPS - 1, generator=setting.generator(*key), device=setting.device).argsort(1)
    trained = torch.zeros(groups, STEPS - 1, dtype=torch.bool, device=setting.device)
    for row, permutation in zip(trained, order.tolist(), strict=True):
        row[list(policy.draw_step_subset(permutation, count))] = True
    return trained.repeat_interleave(members, 0).T


@dataclass(frozen=True)
class Bias:
    """How far an estimator is from the true gradient: relative error of its mean, and Hotelling's T² per degree of
    freedom."""

    relative: float
    chi_square: float


# of the chains of `policy_gradient_bias`
GROUPS = 6000
MEMBERS = 6


@cache
def policy_gradient_bias(
    setting: Setting,
    *,
    trained_steps: int = STEPS - 1,
    shared: bool = False,
    factor: Callable[[int, int], float] = policy.subset_factor,
    baseline: policy.Baseline = "leave_one_out",
    log_prob: Density = cps.gaussian_log_prob,
) -> Bias:
    """T6 (all steps, own noises) and T7 (M steps, shared noises): hybrid against the pathwise gradient of the full
    chain.

    Both use the same chains where they can; the true gradient is the pathwise mean. Cached: two rows read one
    measurement.
    """
    mixture = ring().to(setting.device)
    chains = draw_chains(setting, GROUPS, MEMBERS, 2, "T6")
    trained = draw_trained(setting, GROUPS, MEMBERS, trained_steps, "T7")
    prompt = chains.groups % mixture.prompts
    mixed = shared_chains(chains, trained, False) if shared else chains

    def gradient(loss_of: Callable[[Velocity], Tensor]) -> Tensor:
        theta = torch.zeros(GROUPS, PARAMETERS, dtype=setting.real, device=setting.device, requires_grad=True)
        loss = loss_of(perturbed(setting, mixture, theta[chains.groups], prompt))
        return -torch.autograd.grad(loss.sum() / MEMBERS, theta)[0].double()

    def hybrid(velocity: Velocity) -> Tensor:
        final, densities = roll_out(velocity, mixed, pathwise=False, log_prob=log_prob)
        return hybrid_loss(final, densities, mixed, trained, factor=factor(STEPS, trained_steps), baseline=baseline)

    estimate = gradient(hybrid)
    exact = gradient(lambda velocity: -reward(roll_out(velocity, chains, pathwise=True)[0]))
    difference = estimate - exact
    mean = difference.mean(0)
    whitened = torch.linalg.solve(torch.cov(difference.T), mean)
    return Bias(float(mean.norm() / exact.mean(0).norm()), float(GROUPS * (mean @ whitened) / PARAMETERS))


def linear_chain(setting: Setting, dims: int, variance: float = 3.0) -> tuple[Velocity, list[float]]:
    """Velocity of N(0, variance I) data, whose chain is linear, and the gains ∂x̂_0/∂(x_1, z_1, ..., z_{K-1})."""

    def velocity(x: Tensor, sigma: Tensor) -> Tensor:
        level = sigma[:, None]
        spread = (1 - level) ** 2 * variance + level**2
        return (level - (1 - level) * variance) / spread * x

    unit = Chains(torch.eye(STEPS)[:, :1].double(), torch.eye(STEPS)[1:, :, None].double(), torch.arange(STEPS))
    gains = roll_out(velocity, unit, pathwise=True)[0][:, 0]
    return velocity, gains.tolist()


def sharing_variance(
    setting: Setting, steps: tuple[int, ...], *, initial: bool, dims: int = 128, members: int = 16, groups: int = 150
) -> tuple[float, float]:
    """T7. Variance of a group's policy gradient with shared noise over that without: measured, and in closed form.

    Linear chain, reward x̂_0 · e with |e| = 1, trained `steps` (of 0, 1, 2); the parameters are shifts of the
    transition means. The gradient of a group is the sample covariance of its rewards with the noise, divided by ρ_k;
    for Gaussians its total variance is (var(reward) D + gain_k²) / (N - 1) / ρ_k², where var(reward) counts the
    unshared noises only.
    """
    velocity, gains = linear_chain(setting, dims)
    chains = draw_chains(setting, groups, members, dims, "T7", "linear")
    trained = torch.tensor([k in steps for k in range(STEPS - 1)], device=setting.device)
    mixed = shared_chains(chains, trained[:, None].expand(-1, groups * members), initial)
    measured = _total_variance(velocity, mixed, trained) / _total_variance(velocity, chains, trained)
    own = [not initial, *trained.tolist()]
    shared = sum(gain**2 for gain, mine in zip(gains, own, strict=True) if mine)
    stds = [level * math.sin(ETA * math.pi / 2) for level in LEVELS[1:STEPS]]

    def total(reward_variance: float) -> float:
        return sum((reward_variance * dims + gains[k + 1] ** 2) / stds[k] ** 2 for k in steps)

    return measured, total(shared) / total(sum(gain**2 for gain in gains))


def _total_variance(velocity: Velocity, chains: Chains, trained: Tensor) -> float:
    """Summed variance over groups of the policy gradient in the mean shifts of the trained steps."""
    groups = int(chains.groups[-1] + 1)
    dims = chains.initial.shape[1]
    shifts = torch.zeros(STEPS - 1, groups, dims, dtype=chains.initial.dtype, device=chains.initial.device)
    shifts.requires_grad_()
    by_step = iter(shifts)

    def shifted_log_prob(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        return cps.gaussian_log_prob(x, mean + next(by_step)[chains.groups], std)

    final, densities = roll_out(velocity, chains, pathwise=False, log_prob=shifted_log_prob)
    advantages = policy.subtract_baseline(final[None, :, 0].detach(), chains.groups, "leave_one_out")[0]
    terms = [policy.clipped_policy_loss(density, density.detach(), advantages, 1e-3)[0] for density in densities]
    loss = (torch.stack(terms) * trained[:, None]).sum() * groups / len(chains.groups)
    return float(torch.autograd.grad(loss, shifts)[0].var(1).sum())
