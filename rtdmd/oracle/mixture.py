"""Gaussian mixtures along the linear flow: exact density, score, velocity, posterior samples, and tilted distributions;
expectations under them by Gauss-Hermite quadrature, so that identities need no sampling.

A discrete prompt picks the mixture. Legend: P prompts, J components, d dimensions, B samples. Samples may have any
shape (B, ...) with d numbers each, e.g. (B, 2, 1, 1) latents; results come back in that shape. Parameters are
float64; results have x's dtype.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Mixture:
    """Distributions of x_0: weights (P, J) summing to 1, means (P, J, d), covariances (P, J, d, d) positive definite;
    float64."""

    weights: Tensor
    means: Tensor
    covariances: Tensor

    @property
    def dims(self) -> int:
        """d, numbers per sample."""
        return self.means.shape[-1]

    @property
    def prompts(self) -> int:
        """P, the number of prompts."""
        return self.means.shape[0]

    def to(self, device: torch.device | str) -> "Mixture":
        return Mixture(self.weights.to(device), self.means.to(device), self.covariances.to(device))

    def mean(self) -> Tensor:
        """E[x_0] of each prompt, (P, d)."""
        return (self.weights[..., None] * self.means).sum(1)

    def covariance(self) -> Tensor:
        """Cov[x_0] of each prompt, (P, d, d)."""
        centred = self.means - self.mean()[:, None]
        spread = self.covariances + centred[..., :, None] * centred[..., None, :]
        return (self.weights[..., None, None] * spread).sum(1)

    @cached_property
    def _eigen(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues (P, J, d) and eigenvectors (P, J, d, d) of the covariances."""
        values, vectors = torch.linalg.eigh(self.covariances)
        return values, vectors

    def noised(self, sigma: float) -> "Mixture":
        """The distribution of (1-σ) x_0 + σ ε, again a mixture."""
        identity = torch.eye(self.dims, dtype=torch.float64, device=self.means.device)
        covariances = (1 - sigma) ** 2 * self.covariances + sigma**2 * identity
        return Mixture(self.weights, (1 - sigma) * self.means, covariances)

    def affine(self, shift: Tensor, scale: float) -> "Mixture":
        """The distribution of shift + scale x_0; shift (d,)."""
        return Mixture(self.weights, shift + scale * self.means, scale**2 * self.covariances)

    def sample(self, prompt: Tensor, generator: torch.Generator) -> Tensor:
        """x_0 (B, d) for prompt (B,), float64."""
        chosen = torch.multinomial(self.weights[prompt], 1, generator=generator)[:, 0]
        mean, values, vectors = (part[prompt, chosen] for part in (self.means, *self._eigen))
        noise = torch.randn(mean.shape, dtype=mean.dtype, device=mean.device, generator=generator)
        return mean + torch.einsum("bde,be->bd", vectors, torch.sqrt(values) * noise)

    def log_density(self, x: Tensor, sigma: Tensor, prompt: Tensor) -> Tensor:
        """log p_σ(x) of the noised distribution (1-σ) x_0 + σ ε, (B,). x (B, ...), sigma (B,), prompt (B,)."""
        return torch.logsumexp(self._observe(x, 1 - sigma.double(), sigma.double(), prompt).log_joint, 1).to(x.dtype)

    def conditional_means(self, x: Tensor, signal: Tensor, noise: Tensor, prompt: Tensor) -> tuple[Tensor, Tensor]:
        """E[x_0 | x] and E[ε | x] for x = signal x_0 + noise ε, in the shape of x. signal, noise, prompt (B,)."""
        seen = self._observe(x, signal.double(), noise.double(), prompt)
        x0, epsilon = (_average(seen.log_joint, part).reshape(x.shape).to(x.dtype) for part in (seen.x0, seen.noise))
        return x0, epsilon

    def posterior_mean(self, x: Tensor, sigma: Tensor, prompt: Tensor) -> Tensor:
        """E[x_0 | x_σ = x], shape of x."""
        return self.conditional_means(x, 1 - sigma.double(), sigma, prompt)[0]

    def score(self, x: Tensor, sigma: Tensor, prompt: Tensor) -> Tensor:
        """∇ log p_σ(x), shape of x. Finite at σ = 0 too."""
        seen = self._observe(x, 1 - sigma.double(), sigma.double(), prompt)
        return -_average(seen.log_joint, seen.whitened).reshape(x.shape).to(x.dtype)

    def velocity(self, x: Tensor, sigma: Tensor, prompt: Tensor) -> Tensor:
        """E[ε - x_0 | x_σ = x], shape of x; exact on the whole of [0, 1]."""
        x0, noise = self.conditional_means(x.double(), 1 - sigma.double(), sigma, prompt)
        return (noise - x0).to(x.dtype)

    def posterior_nodes(self, x: Tensor, sigma: Tensor, prompt: Tensor, order: int) -> tuple[Tensor, Tensor]:
        """Quadrature nodes (J order^d, d) and weights of p(x_0 | x_σ = x), for one sample x (1, ...); float64."""
        signal = 1 - sigma.double()
        noise = sigma.double()
        seen = self._observe(x, signal, noise, prompt)
        values, vectors = (part[prompt][0] for part in self._eigen)
        remaining = values * noise**2 / (signal**2 * values + noise**2)
        unit, weights = (part.to(x.device) for part in hermite(order, self.dims))
        nodes = seen.x0[0][:, None] + torch.einsum("jde,je,qe->jqd", vectors, torch.sqrt(remaining), unit)
        return nodes.reshape(-1, self.dims), (torch.softmax(seen.log_joint, 1)[0][:, None] * weights).reshape(-1)

    def tilted(self, linear: Tensor, quadratic: Tensor, beta: float) -> "Mixture":
        """The distribution p(x) exp(β r(x)) / Z for r(x) = linear·x - ½ xᵀ quadratic x; linear (d,), quadratic (d, d)
        symmetric.

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

    def _observe(self, x: Tensor, signal: Tensor, noise: Tensor, prompt: Tensor) -> "Observed":
        """What x = signal x_0 + noise ε says about each component; x (B, ...), the others (B,) float64."""
        values, vectors = (part[prompt] for part in self._eigen)
        signal = signal[:, None, None]
        noise = noise[:, None, None]
        spread = signal**2 * values + noise**2
        centred = x.double().flatten(1)[:, None] - signal * self.means[prompt]
        turned = torch.einsum("bjde,bjd->bje", vectors, centred)
        whitened = torch.einsum("bjde,bje->bjd", vectors, turned / spread)
        gain = torch.einsum("bjde,bje->bjd", vectors, signal * values * turned / spread)
        quadratic = (turned**2 / spread + torch.log(spread)).sum(-1) + self.dims * math.log(2 * math.pi)
        log_joint = torch.log(self.weights[prompt]) - quadratic / 2
        return Observed(log_joint, whitened, self.means[prompt] + gain, noise * whitened)


@dataclass(frozen=True)
class Observed:
    """Per component: log w_j N(x; j) (B, J), S_j⁻¹ (x - mean_j), E[x_0 | x, j] and E[ε | x, j], each (B, J, d)."""

    log_joint: Tensor
    whitened: Tensor
    x0: Tensor
    noise: Tensor


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


def hermite(order: int, dims: int) -> tuple[Tensor, Tensor]:
    """Nodes (order^dims, dims) and weights (order^dims,) with Σ w f(node) = E f(z), z ~ N(0, I); float64."""
    points, weights = np.polynomial.hermite_e.hermegauss(order)
    grids = torch.meshgrid(*[torch.from_numpy(points)] * dims, indexing="ij")
    products = torch.meshgrid(*[torch.from_numpy(weights / weights.sum())] * dims, indexing="ij")
    nodes = torch.stack([grid.reshape(-1) for grid in grids], 1)
    return nodes, torch.stack([product.reshape(-1) for product in products]).prod(0)


def _average(log_joint: Tensor, values: Tensor) -> Tensor:
    """Responsibility-weighted mean over components: (B, J), (B, J, d) -> (B, d)."""
    return (torch.softmax(log_joint, 1)[..., None] * values).sum(1)


def mixture_nodes(mixture: Mixture, order: int) -> tuple[Tensor, Tensor]:
    """Quadrature nodes (J order^d, d) and weights of x_0 under the distribution of prompt 0."""
    unit, weights = (part.to(mixture.means.device) for part in hermite(order, mixture.dims))
    roots = torch.linalg.cholesky(mixture.covariances[0])
    nodes = mixture.means[0][:, None] + torch.einsum("jde,qe->jqd", roots, unit)
    return nodes.reshape(-1, mixture.dims), (mixture.weights[0][:, None] * weights).reshape(-1)


def relative_entropy(q: Mixture, p: Mixture, order: int = 40) -> Tensor:
    """KL(q || p) of prompt 0's distributions, in nats, by quadrature over q."""
    nodes, weights = mixture_nodes(q, order)
    zero = torch.zeros_like(weights)
    prompt = torch.zeros(len(weights), dtype=torch.long, device=weights.device)
    return (weights * (q.log_density(nodes, zero, prompt) - p.log_density(nodes, zero, prompt))).sum()
