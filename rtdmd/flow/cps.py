"""One CPS transition x_σ -> x_τ (τ < σ) and its log-density (arXiv 2509.05952; paper, sampler of the generator).

    x_τ = (1 - τ) x̂_0 + τ cos(ηπ/2) noise_hat + τ sin(ηπ/2) z,    z ~ N(0, I)

η = 0 is the Euler step of the flow ODE, η = 1 renoises x̂_0, τ = 0 is deterministic for every η. The squares of the
two noise coefficients sum to τ², so a true (x_0, noise) pair keeps the marginal distribution of x_τ (statement T3).
"""

import math

import torch
from torch import Tensor

from rtdmd.flow.path import at_least_float32, expand, noise_from_velocity, x0_from_velocity


def cps_mean_std(x: Tensor, v: Tensor, sigma: Tensor, tau: Tensor, eta: float | Tensor) -> tuple[Tensor, Tensor]:
    """Mean (B, C, H, W) and standard deviation (B,) of the transition σ -> τ.

    x, v (B, C, H, W): sample and velocity at level sigma (B,); tau (B,) the lower level; eta one number or (B,).
    """
    x, v, sigma, tau = at_least_float32(x, v, sigma, tau)
    angle = torch.as_tensor(eta, dtype=x.dtype, device=x.device).expand_as(tau) * (math.pi / 2)
    x0 = x0_from_velocity(x, v, sigma)
    noise = noise_from_velocity(x, v, sigma)
    mean = (1 - expand(tau, x)) * x0 + expand(tau * torch.cos(angle), x) * noise
    return mean, tau * torch.sin(angle)


def velocity_slope(sigma: Tensor, tau: Tensor, eta: float) -> Tensor:
    """∂mean/∂v of the transition σ -> τ, of the shape of σ: τ cos(ηπ/2) (1 - σ) - (1 - τ) σ, at most τ - σ < 0."""
    sigma, tau = at_least_float32(sigma, tau)
    return tau * math.cos(eta * math.pi / 2) * (1 - sigma) - (1 - tau) * sigma


def cps_step(x: Tensor, v: Tensor, sigma: Tensor, tau: Tensor, eta: float | Tensor, noise: Tensor) -> Tensor:
    """x_τ = mean + std * noise, with fresh noise (B, C, H, W) ~ N(0, I). Arguments as in `cps_mean_std`."""
    mean, std = cps_mean_std(x, v, sigma, tau, eta)
    return mean + expand(std, mean) * noise.to(mean.dtype)


def gaussian_log_prob(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """log N(x; mean, std² I) summed over the D dimensions, (B,), in nats. std (B,) > 0: the last step (τ = 0) has none.

    The true density. Only with it are the steps' score functions gradients of one objective (see
    `published_log_prob`).
    """
    x, mean, std = at_least_float32(x, mean, std)
    dims = x[0].numel()
    squared = ((x - mean) ** 2).flatten(1).sum(1)
    return -squared / (2 * std**2) - dims * (torch.log(std) + 0.5 * math.log(2 * math.pi))


def published_log_prob(x: Tensor, mean: Tensor) -> Tensor:
    """-mean (x - mean)² over the dimensions, (B,): the public code's surrogate, without 1/(2 ρ²).

    Up to a constant it is the true log-density times 2 ρ_k²/D, so the steps weigh ρ_k² : 0.9² : 0.75² : 0.5² = 3.24 :
    2.25 : 1 for the SD3 schedule, and a clip range of 1e-5 in it is a log-ratio of 1e-5 D / (2 ρ_k²) in the true
    density.
    """
    x, mean = at_least_float32(x, mean)
    return -((x - mean) ** 2).flatten(1).mean(1)


def eta_star(r: Tensor, t: Tensor) -> Tensor:
    """η* = (2/π) arccos c*, c* = (1-t) r / ((1-r) t), for r <= t, r < 1, t > 0; (B,) -> (B,).

    The one η for which CPS from t to r with the posterior mean preserves the conditional expectation, E[h(x_r, r) |
    x_t] = h(x_t, t), when the data distribution is Gaussian (own derivation, statement T2). c* = α(r, t) r/t is the
    correlation of the noises of x_r and x_t along the forward process, so CPS with η* and the true x_0 is its exact
    bridge. η*(0, t) = 1.
    """
    r, t = at_least_float32(r, t)
    cosine = (1 - t) * r / ((1 - r) * t)
    return torch.arccos(cosine.clamp(max=1.0)) * (2 / math.pi)
