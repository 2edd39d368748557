"""Rewards by name: the files of rtdmd/rewards/scorers, and how an entry of params.yaml becomes a scorer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rtdmd.common.discovery import discover
from rtdmd.rewards.registration import Registration, RewardParams

if TYPE_CHECKING:
    import torch

    from rtdmd.rewards.protocol import Reward

REWARDS = discover("rtdmd.rewards.scorers", "REWARD", Registration)
NAMES = tuple(REWARDS)


def load_reward(params: RewardParams, device: torch.device | str = "cpu", root: Path = Path(".")) -> Reward:
    """The scorer that a ``rewards:`` entry of params.yaml names, frozen, on ``device``; paths start from ``root``.

    With a ``socket`` it is another process that computes, on the device that it was started with. Raises UserError for
    weights that are missing or of another kind, and where nothing answers on the socket.
    """
    if params.socket is not None:
        from rtdmd.rewards.remote import RemoteReward

        return RemoteReward(params, root)
    return load_here(params, device, root)


def load_here(params: RewardParams, device: torch.device | str = "cpu", root: Path = Path(".")) -> Reward:
    """As `load_reward`, always in this process."""
    import torch

    from rtdmd.rewards.weights import on_this_machine

    return REWARDS[params.name].load(on_this_machine(params, root), torch.device(device))
