"""The suites of an evaluation: the images that each plans for every model, who judges them, and what was found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rtdmd.common.errors import UserError
from rtdmd.config import Params, SuiteParams
from rtdmd.evaluate.frontier import teacher_items
from rtdmd.evaluate.judge import ImageKey, Judge, Judged
from rtdmd.evaluate.metrics import (
    difference_metrics,
    feature_metrics,
    frontier_metrics,
    model_metrics,
    paired_metrics,
)
from rtdmd.evaluate.names import STUDENT, TEACHER_DISTRIBUTION, level_name
from rtdmd.evaluate.parses import Parses
from rtdmd.evaluate.plan import Item, grid_prompts, plan_suite
from rtdmd.evaluate.ranking import ranking
from rtdmd.evaluate.tables import Scores
from rtdmd.prompts.records import Prompt
from rtdmd.world.verifier import VERIFIER

GRID_IMAGES = 2  # images of each prompt in the pictures


@dataclass(frozen=True)
class Suite:
    """What every model draws for one suite."""

    params: SuiteParams
    prompts: tuple[Prompt, ...]  # of its set
    items: tuple[Item, ...]  # the images
    distribution: tuple[Item, ...]  # of the teacher, with noise of their own: what divergence is measured from
    shown: tuple[Prompt, ...]  # prompts in the pictures
    resolution: int  # pixels
    scorers: frozenset[str]  # names of the rewards that score it

    @property
    def name(self) -> str:
        """What tables call it."""
        return self.params.name

    @property
    def kept(self) -> set[ImageKey]:
        """The images that the pictures show."""
        return {(prompt.id, index) for prompt in self.shown for index in range(GRID_IMAGES)}


@dataclass(frozen=True)
class Evaluated:
    """One model's findings and what its sampler costs."""

    judged: Judged
    steps: int
    evaluations: int


@dataclass
class Findings:
    """What was found on one suite, and by whom."""

    suite: Suite
    judge: Judge
    models: dict[str, Evaluated] = field(default_factory=dict)
    levels: dict[float, Evaluated] = field(default_factory=dict)  # the published student at other values of η
    reference: Judged | None = None  # real images of the plan
    pool: np.ndarray | None = None  # (M, D) features of an independent pool of them
    distribution: Judged | None = None  # the teacher's images of `Suite.distribution`

    def judged(self) -> dict[str, Judged]:
        """Every image: of the models, then of the student at other values of η."""
        others = {level_name(eta): found.judged for eta, found in self.levels.items()}
        return {name: found.judged for name, found in self.models.items()} | others

    def scores(self) -> dict[str, Scores]:
        """Every image's scores, in the order of `judged`."""
        return {name: one.scores for name, one in self.judged().items()}

    def parses(self) -> dict[str, Parses]:
        """What the world's verifier read of every image: of the models, of the student at other values of η, and of
        the teacher's distribution; {} where it read none."""
        judged = self.judged()
        if self.distribution is not None:
            judged[TEACHER_DISTRIBUTION] = self.distribution
        return {name: one.parses for name, one in judged.items() if one.parses is not None}

    def metrics(self, trained_resolution: int, seed: int) -> dict[str, Any]:
        """The suite's part of metrics.json: its size, then a section per model, one for the real images, the paired
        differences, what scores tell of the verdict, the frontier, and the other values of η.

        seed: of the intervals' resampling.
        """

        def section(judged: Judged, steps: int, evaluations: int) -> dict[str, Any]:
            return model_metrics(judged, steps, evaluations) | feature_metrics(judged, self.reference, self.pool)

        metrics: dict[str, Any] = {
            "prompts": len({item.prompt.id for item in self.suite.items}),
            "resolution": self.suite.resolution,
            "trained_resolution": trained_resolution,
        }
        metrics |= {name: section(found.judged, found.steps, found.evaluations) for name, found in self.models.items()}
        if self.reference is not None:
            metrics["reference"] = section(self.reference, 0, 0)
        judged = {name: found.judged for name, found in self.models.items()}
        metrics["paired"] = paired_metrics(judged)
        told = {name: found for name, one in judged.items() if (found := ranking(one.scores))}
        if told:
            metrics["auc"] = told
        if self.distribution is not None:
            metrics["frontier"] = frontier_metrics(judged, self.distribution, seed)
        if self.levels:
            trained = self.models[STUDENT].judged.scores
            metrics["etas"] = {
                f"{eta:g}": section(found.judged, found.steps, found.evaluations)
                | {"minus_trained": difference_metrics(found.judged.scores, trained)}
                for eta, found in self.levels.items()
            }
        return metrics


def plan_suites(params: Params, prompts: Sequence[Prompt]) -> list[Suite]:
    """The suites of ``params`` on the evaluation prompts. UserError for a suite whose set has no prompt left."""
    suites = params.evaluate.suites
    count = params.report.grid_prompts
    planned = []
    for number, suite in enumerate(suites):
        own = prompts_of(suite, prompts)
        items = plan_suite(suite, own)
        scorers = frozenset(reward.name for reward in suite.scorers(params.evaluate.rewards))
        distribution = (
            _distribution_items(suite.name, items, suite.teacher_images)
            if suite.teacher_images and VERIFIER in scorers
            else []
        )
        share = count // len(suites) + (number < count % len(suites))  # of the prompts in the pictures
        planned.append(
            Suite(
                params=suite,
                prompts=tuple(own),
                items=tuple(items),
                distribution=tuple(distribution),
                shown=tuple(grid_prompts(items, share)),
                resolution=suite.resolution or params.model.resolution,
                scorers=scorers,
            )
        )
    return planned


def _distribution_items(suite: str, items: Sequence[Item], count: int) -> list[Item]:
    try:
        return teacher_items(items, count)
    except UserError as error:
        raise UserError(f"evaluate.suites: {suite}: {error}") from None


def prompts_of(suite: SuiteParams, prompts: Sequence[Prompt]) -> list[Prompt]:
    """The prompts of the suite's set. UserError where there are none."""
    own = [prompt for prompt in prompts if prompt.set == suite.prompts]
    if not own:
        raise UserError(
            f"evaluate.suites: {suite.name}: results/prepare_prompts/eval.jsonl has no prompt of the set"
            f" {suite.prompts}; `rtdmd prepare_prompts` makes it anew"
        )
    return own


def all_metrics(found: Sequence[Findings], params: Params) -> dict[str, Any]:
    """metrics.json: a section per suite, and the suites' order (the keys of a JSON file have none)."""
    return {
        "suites": {one.suite.name: one.metrics(params.model.resolution, params.run.seed) for one in found},
        "order": [one.suite.name for one in found],
    }
