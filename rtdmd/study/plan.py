"""What the sweep runs: `workflow/sweep.yaml`, and the parameters of each of its runs.

A run is a name and a seed. `teacher` and `base` (the stage one of params.yaml, which every stage-two method starts
from) are run for every seed; a method is the same params.yaml with the method's settings over it and as many
iterations or epochs as the budget pays for.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import field_validator, model_validator

from rtdmd.common.errors import UserError
from rtdmd.common.section import Real, Section, Whole, param
from rtdmd.config import Params
from rtdmd.config.load import load_settings, validate
from rtdmd.config.presets import merged
from rtdmd.methods import METHODS, find_method
from rtdmd.plan.budget import cost, length_within

PLAN = Path("workflow/sweep.yaml")
TEACHER = "teacher"
BASE = "base"
STAGES = {TEACHER: "teacher", BASE: "train_acdmd"}
MODELS = {"teacher": ("teacher", "teacher_few_step"), "train_acdmd": ("train_acdmd",), "train_rtdmd": ("train_rtdmd",)}
TIME_FILES = ("time_to_reward.csv", "time_runs.csv", "time_curves.csv", "time_to_reward.md")
"""What `rtdmd sweep gather` adds to the page's folder where the plan asks for it, beside a picture per stage."""


class Budgets(Section):
    """What a method's stage may cost, times what params.yaml's own stage costs in forward passes."""

    train_acdmd: Real = param("of every stage-one method", source="ours", gt=0)
    train_rtdmd: Real = param("of every stage-two method", source="ours", gt=0)


class TimeToReward(Section):
    """Asked of the runs, whose students are watched: when did one score so much, and what had that cost?"""

    suite: str = param("the suite of both stages' watch and of evaluate that is read", source="ours")
    levels: tuple[Real, ...] = param(
        "strict scores to reach in stage two; in stage one it is that of the teacher in as few steps",
        source="ours",
        min_length=1,
    )
    against: tuple[str, ...] = param("methods with whose passes the others of their stage are compared", source="ours")


class SweepPlan(Section):
    """The sweep's own settings; everything that ``params`` does not name is params.yaml's."""

    folder: str = param("where the runs' folders lie", source="ours", min_length=1)
    page: str = param("folder of the table and the page", source="ours", min_length=1)
    seeds: tuple[Whole, ...] = param("run.seed of the repetitions", source="ours", min_length=1)
    budget: Budgets = param("of every method, by stage", source="ours")
    shares: dict[str, Real] = param("of its stage's budget, by method, where that is not 1", source="ours")
    points: Whole = param("students of a stage-two run that are judged over time", source="ours", ge=0)
    point_images: Whole = param("held-out images per tag for each of them", unit="images", source="ours", ge=2)
    params: dict[str, Any] = param("sections laid over params.yaml for every run", source="ours")
    methods: tuple[str, ...] = param("names of `rtdmd methods`", source="ours", min_length=1)
    changes: dict[str, dict[str, Any]] = param(
        "sections laid over a method's own settings, by method", source="ours", default={}
    )
    time_to_reward: TimeToReward | None = param(
        "when the runs reached a score; null: not asked", source="ours", default=None
    )

    @field_validator("methods")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [name for name in names if name not in METHODS]
        if unknown or len(set(names)) != len(names):
            raise ValueError(f"allowed: names of `rtdmd methods`, each once (unknown: {', '.join(unknown) or 'none'})")
        return names

    @field_validator("shares")
    @classmethod
    def _of_methods(cls, shares: dict[str, float]) -> dict[str, float]:
        wrong = [name for name, share in shares.items() if name not in METHODS or share <= 0]
        if wrong:
            raise ValueError(
                f"allowed: names of `rtdmd methods`, each with a number above 0 (wrong: {', '.join(wrong)})"
            )
        return shares

    @model_validator(mode="after")
    def _named(self) -> SweepPlan:
        named = {"changes": list(self.changes)}
        if self.time_to_reward is not None:
            named["time_to_reward: against"] = list(self.time_to_reward.against)
        for key, names in named.items():
            unknown = [name for name in names if name not in self.methods]
            if unknown:
                raise ValueError(f"{key}: {unknown[0]!r} is not one of methods; allowed: {', '.join(self.methods)}")
        return self

    def over(self, params: Params) -> Params:
        """params.yaml as every run of the sweep starts from it; UserError where the plan's own sections do not fit."""
        return validate(merged(params.model_dump(mode="json"), self.params), "the sweep's params, over params.yaml")

    def first_seeds(self, count: object) -> tuple[int, ...]:
        """The seeds that `snakemake sweep --config seeds=COUNT` asks for, all for None; UserError where COUNT is no
        number of them."""
        if count is None:
            return self.seeds
        if not isinstance(count, int) or not 1 <= count <= len(self.seeds):
            raise UserError(f"--config seeds={count}: allowed: 1 to {len(self.seeds)}, as many of the plan's seeds")
        return self.seeds[:count]

    def files(self) -> list[str]:
        """Files of the page's folder that are there beside those of every comparison."""
        return list(TIME_FILES) if self.time_to_reward else []

    def runs(self) -> list[str]:
        return [TEACHER, BASE, *self.methods]


def load_plan(path: Path = PLAN) -> SweepPlan:
    """The validated plan; UserError (one line) where it is missing or not allowed."""
    return load_settings(SweepPlan, path, str(PLAN))


def stage_of(run: str) -> str:
    """What the run makes: teacher, train_acdmd or train_rtdmd."""
    return STAGES[run] if run in STAGES else find_method(run).stage


def run_params(base: Params, plan: SweepPlan, run: str, seed: int) -> Params:
    """The parameters of a run: params.yaml's (``base``) with the sweep's own over them, the seed, the method's settings
    and a length within the budget."""
    base = plan.over(base)
    stage = stage_of(run)
    tree = base.model_dump(mode="json")
    suites = tree["evaluate"]["suites"]
    if run != TEACHER:  # whose distribution serves all runs of the seed
        suites = [suite | {"teacher_images": None} for suite in suites]
    changes: dict[str, Any] = {
        "run": {"seed": seed},
        "evaluate": {"models": list(MODELS[stage]), "etas": [], "suites": suites},
    }
    if run in STAGES:
        return validate(merged(tree, changes), f"{run}, over params.yaml")
    name = f"method {run}, over params.yaml"
    changes = merged(merged(changes, find_method(run).changes()), plan.changes.get(run, {}))
    params = validate(merged(tree, changes), name)
    share = getattr(plan.budget, stage) * plan.shares.get(run, 1.0)
    length = length_within(params, stage, share * cost(base, stage))
    if stage == "train_acdmd":
        own = {"iterations": length}
    else:
        own = {"epochs": length}
        if plan.points:  # a checkpoint for each student over time
            own |= {"save_every": -(-length // plan.points), "keep": max(2, plan.points)}
    return validate(merged(tree, merged(changes, {stage: own})), name)


def settings_of(base: Params, plan: SweepPlan) -> Callable[[Any], dict[str, Any]]:
    """What a run depends on, as a function of its Snakemake wildcards ``run`` (absent: the base) and ``seed``."""

    def settings(wildcards: Any) -> dict[str, Any]:
        params = run_params(base, plan, wildcards.get("run", BASE), int(wildcards.seed))
        return params.model_dump(mode="json") | {"points": plan.points, "point_images": plan.point_images}

    return settings


def run_folder(root: Path, plan: SweepPlan, run: str, seed: int) -> Path:
    return root / plan.folder / f"{run}-{seed}"
