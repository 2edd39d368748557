"""What the cluster is asked for: memory, time and GPUs of each rule, from the plan.

Snakemake reads its rules at every start, and torch alone takes longer to import than that may last. So the plan is made
when a job is about to be listed for the first time, and kept in .rtdmd/plan under the hash of what it depends on; a
start that has nothing to do asks for nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rtdmd.common.files import hash_of, read_json, sha256_tree, write_json
from rtdmd.common.hub_names import means_hub
from rtdmd.config import Params

if TYPE_CHECKING:
    from rtdmd.plan.estimate import Plan, StagePlan

FOLDER = ".rtdmd/plan"
GPU = "A100"  # the slowest that is common: a faster one ends early
SLACK = 1.25  # of memory, for the allocator
SLOW = 1.5  # of time
PROGRAM_MB = {"cpu": 1500, "cuda": 6000}  # interpreter and libraries; with CUDA's host side
MIN_MINUTES = 15  # imports, hashing inputs, checkpoints
CPU_FLOPS = 10e9  # a second and thread, below what `rtdmd bench` measures
PARTS = ("model", "adapter", "cache_teacher", "train_acdmd", "train_rtdmd", "evaluate")
WEIGHTS = ("transformer", "student's transformer", "adapters", "merged layers", "decoder", "rewards", "text encoders")
CODE = ("plan", "backbones", "train", "rewards")


@dataclass(frozen=True)
class Resources:
    """Of one job: memory [MB] and GPUs of each of its nodes, wall time [minutes]."""

    mem_mb: int
    runtime: int
    gpu: int


@dataclass
class StageResources:
    """The needs of the stages that compute, made or read when the first is asked for."""

    params: Params
    root: Path = Path(".")

    @cached_property
    def _found(self) -> dict[str, dict[str, int]]:
        return plan_resources(self.params, self.root)

    def of(self, stage: str) -> dict[str, Callable[[Any], int] | int | str]:
        """The resources of a rule by name, for Snakemake to call."""
        found: dict[str, Any] = {field.name: self._resource(stage, field.name) for field in fields(Resources)}
        return on_nodes(found, self.params, stage)

    def _resource(self, stage: str, name: str) -> Callable[[Any], int]:
        return lambda wildcards: self._found[stage][name]


def on_nodes(resources: Mapping[str, Any], params: Params, stage: str) -> dict[str, Any]:
    """``resources`` of a stage's job, with the nodes that it takes. A job of several nodes has one task on each, with
    the node's GPUs, which the executor asks for by ``gres``: its ``gpu`` are those of a task and of the job."""
    nodes, processes = params.layout(stage)
    if nodes == 1:
        return dict(resources)
    on_each = {"gres": f"gpu:{processes}"} if params.run.device == "cuda" else {"tasks": nodes}
    return {name: value for name, value in resources.items() if name != "gpu"} | {"nodes": nodes} | on_each


def plan_resources(params: Params, root: Path = Path(".")) -> dict[str, dict[str, int]]:
    """`Resources` by stage and field, from the kept plan or from a new one. UserError where no plan can be made."""
    path = root / FOLDER / f"{plan_key(params, root)}.json"
    if path.is_file():
        found: dict[str, dict[str, int]] = read_json(path)
        return found
    from rtdmd.plan.estimate import make_plan

    made = {name: asdict(one) for name, one in resources_of(make_plan(params, root), params).items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, made)
    return made


def plan_key(params: Params, root: Path) -> str:
    tree = params.model_dump(mode="json")
    code = {name: sha256_tree(Path(__file__).parents[1] / name) for name in CODE}
    bases = {params.model.teacher, params.model.of_student().teacher}
    shapes = {}
    for base in bases:
        if not means_hub(base):
            configs = sorted((root / base).glob("*/config.json"))
            shapes[base] = {path.parent.name: path.read_text(encoding="utf-8") for path in configs}
    values = {name: tree[name] for name in PARTS} | {"sets": tree["prepare_prompts"]["sets"], "run": tree["run"]}
    return hash_of({"params": values, "code": code, "shapes": shapes})[:16]


def resources_of(plan: Plan, params: Params) -> dict[str, Resources]:
    cuda = params.run.device == "cuda"
    found = {}
    for name, stage in plan.stages.items():
        memory = stage.memory
        # Of what stays on a GPU the host holds the weights once, on their way there.
        weights = sum(memory.parts.get(part, 0.0) for part in WEIGHTS)
        held = memory.host + (weights if cuda else memory.peak)
        one = _resources(held, _minutes(stage, params), cuda)
        _, here = params.layout(name)
        found[name] = Resources(one.mem_mb * here, one.runtime, one.gpu * here)
    exported = max(max(memory.peak, memory.host) for memory in plan.publishing.values())  # on a GPU too: on their way
    return found | {"publish": _resources(exported, 0.0, cuda)}


def _resources(held: float, minutes: float, cuda: bool) -> Resources:
    """Of one process: so many bytes ``held`` in the host's memory, beside what the program itself takes."""
    megabytes = SLACK * held / 1e6 + PROGRAM_MB["cuda" if cuda else "cpu"]
    return Resources(100 * math.ceil(megabytes / 100), MIN_MINUTES + math.ceil(SLOW * minutes), int(cuda))


def _minutes(stage: StagePlan, params: Params) -> float:
    if params.run.device == "cuda":
        return 60 * stage.hours(GPU, params.model.dtype)
    return stage.total / (CPU_FLOPS * params.run.threads * stage.processes) / 60
