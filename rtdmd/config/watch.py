"""Section `watch` of both training stages: the student's scores on held-out prompts while it trains."""

from __future__ import annotations

from pydantic import field_validator, model_validator

from rtdmd.common.section import Section, Whole, param
from rtdmd.config.rewards import RewardEntry, distinct
from rtdmd.config.suites import SetParams, check_suites


class WatchParams(Section):
    """The student's scores on held-out prompts while it trains, in watched.csv; they change nothing of the training."""

    every: Whole = param(
        "steps (updates, epochs) between evaluations, the first before any step; 0: none, and the rest is not read",
        source="public code: stage one 1000, stage two 50",
        ge=0,
    )
    max_prompts: Whole = param(
        "prompts of each suite's set, taken from all tags in turn",
        unit="prompts",
        source="public code: 64, SD3-M's stage one 8",
        ge=1,
    )
    images: Whole = param(
        "of each of these prompts, always of the same noise",
        unit="images",
        source="public code: 1",
        ge=1,
    )
    suites: tuple[SetParams, ...] = param(
        "name, prompts, rewards and resolution, as in evaluate.suites",
        source="public code: nine scorers on five sets, FLUX's stage one seven on three",
    )
    rewards: tuple[RewardEntry, ...] = param(
        "scorers, each once; a suite names those that score it; between two evaluations their weights are on the CPU",
        source="public code: the evaluation's",
    )

    _distinct = field_validator("rewards")(distinct)

    @model_validator(mode="after")
    def _check(self) -> WatchParams:
        if self.every == 0:
            return self
        for key, entries in (("suites", self.suites), ("rewards", self.rewards)):
            if not entries:
                raise ValueError(f"{key}: [] with every: {self.every}; allowed: one or more, or every: 0")
        check_suites(self.suites, self.rewards, "watch")
        return self
