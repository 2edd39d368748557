"""custom_gradient: a reward of one's own, whose gradient back-propagation follows (`rtdmd.rewards.custom`)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rtdmd.common.section import param
from rtdmd.rewards.custom import OwnReward, OwnRewardParams
from rtdmd.rewards.registration import FREE, Registration

if TYPE_CHECKING:
    import torch


class CustomGradientParams(OwnRewardParams):
    """A reward of one's own, whose gradient back-propagation follows."""

    name: Literal["custom_gradient"] = param("scorer", source="ours: rtdmd/rewards/custom.py")

    differentiable = True
    label = "Own reward (gradient)"


def load(params: CustomGradientParams, device: torch.device) -> OwnReward:
    """The reward of the folder. UserError where it has no reward.py, or one that cannot be imported."""
    return OwnReward(params.name, params.differentiable, Path(params.module), device)


REWARD = Registration(CustomGradientParams, load, FREE)
