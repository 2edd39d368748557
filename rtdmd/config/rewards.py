"""One reward: which scorer, with which weights, counting how much. Used by `train_rtdmd` and `evaluate`."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from rtdmd.config.base import Real, Section, param

DIFFERENTIABLE = {"clipscore": True, "world_verifier": False}
"""Known rewards, and whether the last step can be trained by back-propagation through them."""


class RewardParams(Section):
    """A scorer of images given their prompts."""

    name: Literal["clipscore", "world_verifier"] = param("scorer", source="rtdmd.rewards registry")
    model: str | None = param(
        "model folder or Hub id of the scorer; null when it has none", source="ours", default=None
    )
    weight: Real = param("weight in the sum over rewards", source="public code: 1 each", ge=0, default=1.0)
    soft_weight: Real | None = param(
        "world_verifier: share of the soft score, the rest is strict 0/1", source="ours: 0.7", ge=0, le=1, default=None
    )

    @property
    def differentiable(self) -> bool:
        """True when the score carries a gradient to the image."""
        return DIFFERENTIABLE[self.name]

    @model_validator(mode="after")
    def _check(self) -> RewardParams:
        if self.name == "clipscore" and self.model is None:
            raise ValueError("model: None for clipscore; allowed: a CLIPModel folder or Hub id")
        if self.name == "world_verifier" and self.model is not None:
            raise ValueError(
                f"model: {self.model!r} for world_verifier; allowed: null (it is exact and has no weights)"
            )
        if (self.soft_weight is None) == (self.name == "world_verifier"):
            allowed = "a number from 0 to 1" if self.name == "world_verifier" else "null"
            raise ValueError(f"soft_weight: {self.soft_weight!r} for {self.name}; allowed: {allowed}")
        return self


def distinct(rewards: tuple[RewardParams, ...]) -> tuple[RewardParams, ...]:
    """The same rewards; ValueError when a name occurs twice (scores are kept by name)."""
    names = [reward.name for reward in rewards]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{name!r} occurs {names.count(name)} times; allowed: each reward once")
    return rewards
