"""custom: a reward of one's own, that passes no gradient (`rtdmd.rewards.custom`)."""

from __future__ import annotations

from typing import Literal

from rtdmd.common.section import param
from rtdmd.rewards.custom import OwnReward, OwnRewardParams
from rtdmd.rewards.registration import FREE, Registration


class CustomParams(OwnRewardParams):
    """A reward of one's own, that passes no gradient."""

    name: Literal["custom"] = param("scorer", source="ours: rtdmd/rewards/custom.py")

    differentiable = False
    label = "Own reward"


REWARD = Registration(CustomParams, OwnReward, FREE)
