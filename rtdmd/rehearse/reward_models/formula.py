"""Weights by a formula, not by a generator, so that the published packages can be given the same files anywhere."""

from __future__ import annotations

import torch
from torch import Tensor


def scattered(count: int, number: int) -> Tensor:
    """Numbers in (-1, 1) without visible order: the far decimals of a sine."""
    far = torch.sin(torch.arange(count, dtype=torch.float64) * 12.9898 + 78.233 * number) * 43758.5453
    return 2 * (far - far.floor()) - 1
