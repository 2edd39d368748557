"""An entry of a list of scorers (`train_rtdmd.rewards`, evaluation, watches): which one, with which weights, and how
much it counts.

The keys are those of the scorer's own class, in its file in rtdmd/rewards/scorers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Union

from pydantic import Field, TypeAdapter

from rtdmd.rewards.registration import RewardParams
from rtdmd.rewards.registry import REWARDS

if TYPE_CHECKING:
    RewardEntry = RewardParams
else:
    RewardEntry = Annotated[
        Union[tuple(reward.settings for reward in REWARDS.values())],  # noqa: UP007  # a union of what was found
        Field(discriminator="name"),
    ]

SOURCES = {key: source.pin for reward in REWARDS.values() for key, source in reward.settings.sources.items()}
"""Keys that name a folder or a Hub id, of any scorer, and the key that pins each one's commit."""

LABELS = {name: reward.settings.label for name, reward in REWARDS.items() if reward.settings.label is not None}
"""What tables call the scores of scorers that have a name for it."""

_ENTRY: TypeAdapter[RewardParams] = TypeAdapter(RewardEntry)


def reward_params(**keys: Any) -> RewardParams:
    """An entry with these keys, in the class of its scorer; pydantic's ValidationError where it is not allowed."""
    return _ENTRY.validate_python(keys)


def distinct(rewards: tuple[RewardParams, ...]) -> tuple[RewardParams, ...]:
    """The same rewards; ValueError when a name occurs twice (scores are kept by name)."""
    names = [reward.name for reward in rewards]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{name!r} occurs {names.count(name)} times; allowed: each reward once")
    return rewards
