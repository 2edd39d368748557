"""Rewards by name. A new one is a file beside this one and a line in LOADERS; it is imported only when it is used."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from rtdmd.errors import UserError
from rtdmd.rewards.protocol import Reward

if TYPE_CHECKING:
    from rtdmd.config import RewardParams

# name -> module, which has `load(spec, device, root) -> Reward`
LOADERS = {
    "clipscore": "rtdmd.rewards.clipscore",
    "world_verifier": "rtdmd.rewards.world_verifier",
}
NAMES = tuple(LOADERS)


def load_reward(spec: RewardParams, device: torch.device | str = "cpu", root: Path = Path(".")) -> Reward:
    """The scorer that a ``rewards:`` entry of params.yaml names, frozen, on ``device``; paths start from ``root``.

    Raises UserError for an unknown name and for a model folder that is missing or of another kind.
    """
    if spec.name not in LOADERS:
        raise UserError(f"rewards: {spec.name!r} is unknown; available: {', '.join(NAMES)}")
    reward: Reward = import_module(LOADERS[spec.name]).load(spec, torch.device(device), root)
    return reward
