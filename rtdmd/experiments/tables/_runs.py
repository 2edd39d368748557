"""Runs that several tables share."""

from rtdmd.experiments._table import Run

SD35M = Run("sd35m", "sd35m", "SD3.5-M as published: γ = 0.01, SubGRPO with M = 2 and the last step, η = 0.9")

REWARDS = "the paper names no training rewards for this table; ours are the preset's, the public code's"
