"""Scores of images given their prompts, behind one protocol. `load_reward` finds a scorer by its name in params."""

from rtdmd.rewards.golden import check_rewards
from rtdmd.rewards.protocol import Reward, identities
from rtdmd.rewards.registry import NAMES, load_reward

__all__ = ["NAMES", "Reward", "check_rewards", "identities", "load_reward"]
