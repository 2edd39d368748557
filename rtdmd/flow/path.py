"""The linear flow path x_σ = (1 - σ) x_0 + σ noise and its velocity v = noise - x_0 (paper, preliminaries),
and what every equation relies on: float32 at least, and finite or an error."""

import torch
from torch import Tensor


def at_least_float32(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Promote all tensors to their common dtype, float32 at least (any shapes; float64 wins over float32)."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return tuple(tensor.to(dtype) for tensor in tensors)


def require_finite(name: str, tensor: Tensor) -> Tensor:
    """Return `tensor` unchanged, or raise FloatingPointError that names it and counts its faults."""
    finite = torch.isfinite(tensor)
    if not bool(finite.all()):
        raise FloatingPointError(f"{name} has {int((~finite).sum())} non-finite values of {tensor.numel()}")
    return tensor


def expand(sigma: Tensor, like: Tensor) -> Tensor:
    """Reshape σ (B,) to (B, 1, ..., 1) so that it broadcasts over `like` (B, ...), e.g. (B, 1, 1, 1) for latents."""
    if sigma.dim() != 1 or sigma.shape[0] != like.shape[0]:
        raise ValueError(f"sigma must have shape ({like.shape[0]},), one level per sample; got {tuple(sigma.shape)}")
    return sigma.view(-1, *[1] * (like.dim() - 1))


def interpolate(x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """x_σ = (1 - σ) x_0 + σ noise. x0, noise (B, C, H, W); sigma (B,)."""
    x0, noise, sigma = at_least_float32(x0, noise, sigma)
    level = expand(sigma, x0)
    return (1 - level) * x0 + level * noise


def x0_from_velocity(x: Tensor, v: Tensor, sigma: Tensor) -> Tensor:
    """x_0 = x_σ - σ v. With a model's v it is the estimate h(x, σ) of E[x_0 | x_σ]. x, v (B, C, H, W); sigma (B,)."""
    x, v, sigma = at_least_float32(x, v, sigma)
    return x - expand(sigma, x) * v


def noise_from_velocity(x: Tensor, v: Tensor, sigma: Tensor) -> Tensor:
    """noise = x_σ + (1 - σ) v. x, v (B, C, H, W); sigma (B,)."""
    x, v, sigma = at_least_float32(x, v, sigma)
    return x + (1 - expand(sigma, x)) * v
