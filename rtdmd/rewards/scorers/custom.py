"""custom: a reward of one's own, that passes no gradient (`rtdmd.rewards.custom`)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rtdmd.common.section import param
from rtdmd.rewards.custom import OwnReward, OwnRewardParams
from rtdmd.rewards.registration import FREE, Registration

if TYPE_CHECKING:
    import torch


class CustomParams(OwnRewardParams):
    """A reward of one's own, that passes no gradient."""

    name: Literal["custom"] = param("scorer", source="ours: rtdmd/rewards/custom.py")

    differentiable = False
    label = "Own reward"


def load(params: CustomParams, device: torch.device) -> OwnReward:
    """The reward of the folder. UserError where it has no reward.py, or one that cannot be imported."""
    return OwnReward(params.name, params.differentiable, Path(params.module), device)


REWARD = Registration(CustomParams, load, FREE)
