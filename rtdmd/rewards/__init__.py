"""Scores of images given their prompts, behind one protocol. `load_reward` finds a scorer by its name in params."""

from rtdmd.rewards.protocol import Reward
from rtdmd.rewards.registry import NAMES, load_reward

__all__ = ["NAMES", "Reward", "load_reward"]
