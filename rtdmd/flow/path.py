"""The linear flow path x_σ = (1 - σ) x_0 + σ noise and its velocity v = noise - x_0 (paper, preliminaries)."""

from torch import Tensor

from rtdmd.flow.precision import at_least_float32


def expand(sigma: Tensor, like: Tensor) -> Tensor:
    """Reshape σ (B,) to (B, 1, ..., 1) so that it broadcasts over `like` (B, ...), e.g. (B, 1, 1, 1) for latents."""
    if sigma.dim() != 1 or sigma.shape[0] != like.shape[0]:
        raise ValueError(f"sigma must have shape ({like.shape[0]},), one level a sample; got {tuple(sigma.shape)}")
    return sigma.view(-1, *[1] * (like.dim() - 1))


def interpolate(x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """x_σ = (1 - σ) x_0 + σ noise. x0, noise (B, C, H, W); sigma (B,)."""
    x0, noise, sigma = at_least_float32(x0, noise, sigma)
    level = expand(sigma, x0)
    return (1 - level) * x0 + level * noise


def x0_from_velocity(x: Tensor, v: Tensor, sigma: Tensor) -> Tensor:
    """x_0 = x_σ - σ v. x, v (B, C, H, W); sigma (B,)."""
    x, v, sigma = at_least_float32(x, v, sigma)
    return x - expand(sigma, x) * v


def noise_from_velocity(x: Tensor, v: Tensor, sigma: Tensor) -> Tensor:
    """noise = x_σ + (1 - σ) v. x, v (B, C, H, W); sigma (B,)."""
    x, v, sigma = at_least_float32(x, v, sigma)
    return x + (1 - expand(sigma, x)) * v


def velocity_from_x0(x: Tensor, x0: Tensor, sigma: Tensor) -> Tensor:
    """v = (x_σ - x_0) / σ. x, x0 (B, C, H, W); sigma (B,), which must be above 0 (at 0 the result is not finite)."""
    x, x0, sigma = at_least_float32(x, x0, sigma)
    return (x - x0) / expand(sigma, x)
