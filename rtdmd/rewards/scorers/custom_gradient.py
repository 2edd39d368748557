"""custom_gradient: a reward of one's own, whose gradient back-propagation follows (`rtdmd.rewards.custom`)."""

from __future__ import annotations

from typing import Literal

from rtdmd.common.section import param
from rtdmd.rewards.custom import OwnReward, OwnRewardParams
from rtdmd.rewards.registration import FREE, Registration


class CustomGradientParams(OwnRewardParams):
    """A reward of one's own, whose gradient back-propagation follows."""

    name: Literal["custom_gradient"] = param("scorer", source="ours: rtdmd/rewards/custom.py")

    differentiable = True
    label = "Own reward (gradient)"


REWARD = Registration(CustomGradientParams, OwnReward, FREE)
