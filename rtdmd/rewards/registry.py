"""Rewards by name. A scorer is the file of its name beside this one, imported only when it is used.

To add one (or to switch on one whose fields rtdmd/config/rewards.py already lists in SCORERS):
1. `rtdmd/rewards/<name>.py` with `def load(params: RewardParams, device: torch.device) -> Reward`. By then every folder
   in `params` (model, base, colour_model) is on this machine: relative paths start from the run's root and a Hub id
   was fetched at its commit, so `Path(params.model)` is a folder to read. Import torch and transformers in that file
   freely; nothing imports it before it is used. `rtdmd.rewards.weights` reads .pt/.safetensors safely and checks keys.
2. Its name in `RewardName` of rtdmd/config/rewards.py (and its entry in SCORERS), and its line in LOADERS below.
   Fields that only it has: an optional field of RewardParams that SCORERS names in `needs` or `optional`.
3. Its row in docs/rewards.md, and `make generated`.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from rtdmd.common.errors import UserError
from rtdmd.rewards.protocol import Reward
from rtdmd.rewards.weights import on_this_machine

if TYPE_CHECKING:
    from rtdmd.config import RewardParams

# name -> module (written out: the engines' test of code dependencies reads imports from here)
LOADERS = {
    "aesthetic": "rtdmd.rewards.aesthetic",
    "clipscore": "rtdmd.rewards.clipscore",
    "geneval": "rtdmd.rewards.geneval",
    "geneval2": "rtdmd.rewards.geneval2",
    "hpsv2": "rtdmd.rewards.hpsv2",
    "hpsv3": "rtdmd.rewards.hpsv3",
    "imagereward": "rtdmd.rewards.imagereward",
    "ocr": "rtdmd.rewards.ocr",
    "pickscore": "rtdmd.rewards.pickscore",
    "world_verifier": "rtdmd.rewards.world_verifier",
}
NAMES = tuple(LOADERS)


def load_reward(params: RewardParams, device: torch.device | str = "cpu", root: Path = Path(".")) -> Reward:
    """The scorer that a ``rewards:`` entry of params.yaml names, frozen, on ``device``; paths start from ``root``.

    With a ``socket`` it is another process that computes, on the device that it was started with. Raises UserError for
    an unknown name, for weights that are missing or of another kind, and where nobody answers on the socket.
    """
    if params.socket is not None:
        from rtdmd.rewards.remote import RemoteReward

        return RemoteReward(params, root)
    return load_here(params, device, root)


def load_here(params: RewardParams, device: torch.device | str = "cpu", root: Path = Path(".")) -> Reward:
    """As `load_reward`, always in this process."""
    if params.name not in LOADERS:
        raise UserError(f"rewards: {params.name!r} is unknown; available: {', '.join(NAMES)}")
    found = on_this_machine(params, root)
    reward: Reward = import_module(LOADERS[params.name]).load(found, torch.device(device))
    return reward
