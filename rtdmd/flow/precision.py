"""Precision and finiteness: the two properties that every equation of this package relies on."""

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


def sum_dims(x: Tensor) -> Tensor:
    """Sum over everything but the batch: (B, ...) -> (B,)."""
    return x.flatten(1).sum(1)


def mean_dims(x: Tensor) -> Tensor:
    """Mean over everything but the batch: (B, ...) -> (B,)."""
    return x.flatten(1).mean(1)
