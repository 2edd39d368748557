"""Suites: prompt sets that nothing is trained on, each with the scorers that judge the images drawn for it."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import model_validator

from rtdmd.common.section import Section, Whole, param
from rtdmd.config.rewards import RewardEntry


class SetParams(Section):
    """A prompt set, who scores its images and how large they are."""

    name: str = param(
        "what figures and tables call it, in metrics.json and scores.csv too",
        source="ours",
        pattern="^[a-z0-9][a-z0-9_-]*$",
    )
    prompts: str = param("the set of prepare_prompts.sets that it draws, which nothing is trained on", source="ours")
    rewards: tuple[str, ...] | None = param(
        "names of the scorers beside the suites that score it; null: all of them",
        source="public code: a set of its own for each scorer but five",
        default=None,
        min_length=1,
    )
    resolution: Whole | None = param(
        "side of a square image; null: the size at which the students train, model.resolution and model.width",
        unit="pixels",
        source="public code: 1024; while training, model.resolution",
        default=None,
        ge=8,
    )

    @model_validator(mode="after")
    def _check_names(self) -> SetParams:
        if self.rewards is not None and len(set(self.rewards)) != len(self.rewards):
            raise ValueError(f"rewards: {list(self.rewards)}; allowed: each name once")
        return self

    def scorers(self, rewards: Sequence[RewardEntry]) -> tuple[RewardEntry, ...]:
        """Those of ``rewards``, the scorers beside the suites, that score this one, in their order there."""
        return tuple(reward for reward in rewards if self.rewards is None or reward.name in self.rewards)


def check_suites(suites: Sequence[SetParams], rewards: Sequence[RewardEntry], section: str) -> None:
    """Suites are told apart by name, and every scorer that is loaded scores one of them. ``section`` has both."""
    names = [suite.name for suite in suites]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"suites: {name!r} occurs {names.count(name)} times; allowed: each name once")
    known = [reward.name for reward in rewards]
    for suite in suites:
        unknown = [name for name in suite.rewards or () if name not in known]
        if unknown:
            raise ValueError(
                f"suites: {suite.name}: rewards: {unknown[0]!r} is not one of {section}.rewards; allowed:"
                f" {', '.join(known)}"
            )
    used = {reward.name for suite in suites for reward in suite.scorers(rewards)}
    idle = [name for name in known if name not in used]
    if idle:
        raise ValueError(f"rewards: {idle[0]} scores no suite; allowed: rewards that a suite names")
