"""Gaussian mixtures along the linear flow: exact density, score, velocity, posterior samples, and tilted laws.

A discrete prompt picks the mixture. Legend: P prompts, J components, d dimensions, B samples. Samples may have any
shape (B, ...) with d numbers each, e.g. (B, 2, 1, 1) latents; results come back in that shape. Parameters are
float64; results have x's dtype.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Mixture:
    """Laws of x_0: weights (P, J) summing to 1, means (P, J, d), covariances (P, J, d, d) positive definite;
    float64."""

    weights: Tensor
    means: Tensor
    covariances: Tensor

    @property
    def dims(self) -> int:
        """d, numbers a sample."""
        return self.means.shape[-1]

    @property
    def prompts(self) -> int:
        """P, the number of prompts."""
        return self.means.shape[0]

    def to(self, device: torch.device | str) -> "Mixture":
        """The same laws on another device."""
        return Mixture(self.weights.to(device), self.means.to(device), self.covariances.to(device))

    def mean(self) -> Tensor:
        """E[x_0] of each prompt, (P, d)."""
        return (self.weights[..., None] * self.means).sum(1)

    def covariance(self) -> Tensor:
        """Cov[x_0] of each prompt, (P, d, d)."""
        centred = self.means - self.mean()[:, None]
        spread = self.covariances + centred[..., :, None] * centred[..., None, :]
        return (self.weights[..., None, None] * spread).sum(1)

    def sample(self, prompt: Tensor, generator: torch.Generator) -> Tensor:
        """x_0 (B, d) for prompt (B,), float64."""
        chosen = _choose(self.weights[prompt], generator)
        return _gaussian(_pick(self.means[prompt], chosen), _pick(self.covariances[prompt], chosen), generator)

    def log_density(self, x: Tensor, sigma: Tensor, prompt: Tensor) -> Tensor:
        """log p_σ(x) of the noised law (1-σ) x_0 + σ ε, (B,). x (B, ...), sigma (B,), prompt (B,)."""
        return torch.logsumexp(self._joint(x, sigma, prompt)[0], 1).to(x.dtype)

    def score(self, x: Tensor, sigma: Tensor, prompt: Tensor) -> Tensor:
        """∇ log p_σ(x), shape of x. Finite at σ = 0 too."""
        log_joint, whitened, _ = self._joint(x, sigma, prompt)
        return -_average(log_joint, whitened).reshape(x.shape).to(x.dtype)

    def posterior_mean(self, x: Tensor, sigma: Tensor, prompt: Tensor) -> Tensor:
        """E[x_0 | x_σ = x], shape of x."""
        log_joint, whitened, _ = self._joint(x, sigma, prompt)
        return _average(log_joint, self._x0(whitened, sigma, prompt)).reshape(x.shape).to(x.dtype)

    def velocity(self, x: Tensor, sigma: Tensor, prompt: Tensor) -> Tensor:
        """E[ε - x_0 | x_σ = x], shape of x; exact on the whole of [0, 1]."""
        log_joint, whitened, _ = self._joint(x, sigma, prompt)
        noise = sigma.double()[:, None, None] * whitened
        return _average(log_joint, noise - self._x0(whitened, sigma, prompt)).reshape(x.shape).to(x.dtype)

    def posterior_sample(self, x: Tensor, sigma: Tensor, prompt: Tensor, generator: torch.Generator) -> Tensor:
        """One x_0 ~ p(x_0 | x_σ = x) a sample, shape of x."""
        log_joint, whitened, spread = self._joint(x, sigma, prompt)
        chosen = _choose(torch.softmax(log_joint, 1), generator)
        scale = (1 - sigma.double())[:, None, None, None]
        covariances = self.covariances[prompt]
        posterior = covariances - scale**2 * covariances @ torch.linalg.solve(spread, covariances)
        x0 = _gaussian(_pick(self._x0(whitened, sigma, prompt), chosen), _pick(posterior, chosen), generator)
        return x0.reshape(x.shape).to(x.dtype)

    def tilted(self, linear: Tensor, quadratic: Tensor, beta: float) -> "Mixture":
        """The law p(x) exp(β r(x)) / Z for r(x) = linear·x - ½ xᵀ quadratic x; linear (d,), quadratic (d, d) symmetric.

        Component by component: precision Λ' = Λ + β Q, mean Λ'⁻¹ (Λ m + β b), weight times its evidence.
        """
        precision = torch.linalg.inv(self.covariances)
        covariances = torch.linalg.inv(precision + beta * quadratic)
        natural = (precision @ self.means[..., None])[..., 0]
        shifted = natural + beta * linear
        means = (covariances @ shifted[..., None])[..., 0]
        evidence = ((means * shifted).sum(-1) - (self.means * natural).sum(-1)) / 2
        evidence = evidence + (torch.logdet(covariances) - torch.logdet(self.covariances)) / 2
        return Mixture(torch.softmax(torch.log(self.weights) + evidence, 1), means, covariances)

    def _joint(self, x: Tensor, sigma: Tensor, prompt: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """log w_j N(x; j) (B, J), S_j⁻¹ (x - (1-σ) m_j) (B, J, d), and S_j = (1-σ)² C_j + σ² I (B, J, d, d)."""
        level = sigma.double()[:, None, None, None]
        identity = torch.eye(self.dims, dtype=torch.float64, device=x.device)
        spread = (1 - level) ** 2 * self.covariances[prompt] + level**2 * identity
        centred = x.double().flatten(1)[:, None] - (1 - level[..., 0]) * self.means[prompt]
        whitened = torch.linalg.solve(spread, centred[..., None])[..., 0]
        quadratic = (centred * whitened).sum(-1) + torch.logdet(spread) + self.dims * math.log(2 * math.pi)
        return torch.log(self.weights[prompt]) - quadratic / 2, whitened, spread

    def _x0(self, whitened: Tensor, sigma: Tensor, prompt: Tensor) -> Tensor:
        """E[x_0 | x_σ, component] (B, J, d)."""
        gain = (self.covariances[prompt] @ whitened[..., None])[..., 0]
        return self.means[prompt] + (1 - sigma.double())[:, None, None] * gain


def gaussian(mean: Tensor, covariance: Tensor) -> Mixture:
    """One Gaussian for one prompt: mean (d,), covariance (d, d)."""
    return Mixture(torch.ones(1, 1, dtype=torch.float64), mean.double()[None, None], covariance.double()[None, None])


def ring(prompts: int = 3, components: int = 3, radius: float = 1.5, variance: float = 0.06) -> Mixture:
    """The oracle's teacher: for each prompt, components of unequal weight on a turned ring, with correlated
    covariances."""
    index = torch.arange(components, dtype=torch.float64)
    turn = torch.arange(prompts, dtype=torch.float64)[:, None]
    angle = 2 * math.pi * (index / components + turn / (prompts * components)) + 0.3
    means = radius * torch.stack([torch.cos(angle), torch.sin(angle)], -1)
    weights = (1 + index).expand(prompts, -1) / (1 + index).sum()
    shape = torch.tensor([[1.0, 0.4], [0.4, 0.7]], dtype=torch.float64)
    return Mixture(weights, means, (variance * shape).expand(prompts, components, 2, 2))


def _average(log_joint: Tensor, values: Tensor) -> Tensor:
    """Responsibility-weighted mean over components: (B, J), (B, J, d) -> (B, d)."""
    return (torch.softmax(log_joint, 1)[..., None] * values).sum(1)


def _choose(weights: Tensor, generator: torch.Generator) -> Tensor:
    """One component index a row: (B, J) -> (B,)."""
    return torch.multinomial(weights, 1, generator=generator)[:, 0]


def _pick(values: Tensor, chosen: Tensor) -> Tensor:
    """values[b, chosen[b]]: (B, J, ...) -> (B, ...)."""
    return values[torch.arange(len(chosen), device=values.device), chosen]


def _gaussian(mean: Tensor, covariance: Tensor, generator: torch.Generator) -> Tensor:
    """One draw a row from N(mean (B, d), covariance (B, d, d))."""
    noise = torch.randn(mean.shape, dtype=mean.dtype, device=generator.device, generator=generator).to(mean.device)
    return mean + (torch.linalg.cholesky(covariance) @ noise[..., None])[..., 0]
