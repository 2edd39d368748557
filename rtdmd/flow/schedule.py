"""The few-step levels and the shift of the FlowMatch scheduler.

Golden references: a backbone takes its levels from the scheduler that ships with it; the tests compare. A level that
came out of a scheduler is shifted already and must not be shifted again.
"""

import torch
from torch import Tensor

from rtdmd.flow.path import at_least_float32


def raw_few_steps(num_steps: int) -> Tensor:
    """1, (K-1)/K, ..., 1/K as (K,) float32, before any shift (public code: 1000, 750, 500, 250 for K = 4)."""
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    return (torch.arange(num_steps, 0, -1, dtype=torch.float64) / num_steps).float()


def shift_static(sigma: Tensor, shift: float) -> Tensor:
    """σ' = s σ / (1 + (s - 1) σ), any shape, s = `shift` > 0 (SD3 family: 3; Esser et al. 2024, eq. 23)."""
    (sigma,) = at_least_float32(sigma)
    return shift * sigma / (1 + (shift - 1) * sigma)
