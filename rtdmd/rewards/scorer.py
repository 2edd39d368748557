"""What all scorers of this package share: who they are, and the weights that move."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rtdmd.rewards.registration import RewardParams

if TYPE_CHECKING:
    import torch


class Scorer:
    """A `Reward` that is computed in this process; what it is, its entry says.

    modules: what has weights to move. about: what decides its scores beside its name, for `identity`: sha256 by file,
    text template, version (raised when the score of any image changes) and settings.
    """

    range: tuple[float, float] = (-math.inf, math.inf)

    def __init__(self, params: RewardParams, device: torch.device, modules: Sequence[Any], **about: Any):
        self.name = params.name
        self.differentiable = params.differentiable
        self.needs_metadata = params.needs_metadata
        self.device = device
        self._modules = modules
        self._about = about

    def identity(self) -> dict[str, Any]:
        """See `Reward`."""
        return {"name": self.name, **self._about}

    def to(self, device: torch.device) -> None:
        """See `Reward`."""
        for module in self._modules:
            module.to(device)
        self.device = device
