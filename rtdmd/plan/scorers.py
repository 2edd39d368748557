"""The reward models of a run by their shapes alone: their size, and what an image costs, with and without its gradient.

What a scorer's networks are, its file in rtdmd/rewards/scorers says (`rtdmd.rewards.registration`). Scorers that pass
no gradient and are larger than a tower (vision-language models, a detector) are taken at their published size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from rtdmd.common.torch_setup import quiet_imports
from rtdmd.plan.cost_counter import META
from rtdmd.plan.models import built_on
from rtdmd.rewards.registration import FREE, Recorded
from rtdmd.rewards.registry import REWARDS

if TYPE_CHECKING:
    from rtdmd.config import RewardParams


@dataclass(frozen=True)
class Scorer:
    """A reward's networks, its score of images (B, 3, H, W) where it can be run here, and its size where not."""

    name: str
    differentiable: bool
    modules: list[nn.Module] = field(default_factory=list)
    score: Callable[[Tensor], Tensor] | None = None
    recorded: Recorded = FREE


def load_scorer(spec: RewardParams, root: Path = Path("."), device: torch.device = META) -> Scorer:
    """The reward of a params entry without its weights, or with random ones on a ``device`` that has memory; a scorer
    in another process takes nothing of this one."""
    cost = REWARDS[spec.name].cost
    if spec.socket is not None:
        return Scorer(spec.name, spec.differentiable)
    if isinstance(cost, Recorded):
        return Scorer(spec.name, spec.differentiable, recorded=cost)
    with built_on(device, torch.float32), quiet_imports():
        networks = cost(spec, root)
    for module in networks.modules:
        module.to(device).requires_grad_(False).eval()
    return Scorer(spec.name, spec.differentiable, networks.modules, networks.score)
