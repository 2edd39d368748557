"""The plan of a run: parameters by role, and for each stage its FLOPs and its peak memory by part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from rtdmd.backbones.sizes import require_suites
from rtdmd.common.files import read_json
from rtdmd.config import Params, SuiteParams
from rtdmd.pipeline.dvc_yaml import params_values, read_pipeline
from rtdmd.plan.cost_counter import META, size_of, tensors_of
from rtdmd.plan.costs import ROWS, Cost, Costs, count, flops_of
from rtdmd.plan.fits import Measure
from rtdmd.plan.gpus import GPUS, UTILISATION
from rtdmd.plan.memory import Memory, acdmd_memory, cache_memory, evaluate_memory, rtdmd_memory, with_watch
from rtdmd.plan.meta_models import MetaModels
from rtdmd.plan.passes import acdmd_rows, distribution_rows, evaluate_rows, rtdmd_rows, watch_rows
from rtdmd.plan.publishing import publishing_memory
from rtdmd.prompts.records import read_prompts
from rtdmd.prompts.registry import SOURCES

EVALUATION_PROMPTS = {"drawbench": 200, "geneval": 553, "geneval2": 800, "hpsv3": 1024, "ocr": 1018}
"""Prompts of the published evaluation sets by source, before prepare_prompts has run; of another source DrawBench's."""
PREPARED = Path("results/prepare_prompts")
UNKNOWN_PROMPTS = 26_000  # before prepare_prompts has run; PickScore's and DrawBench's together are 25 632


@dataclass(frozen=True)
class SuitePlan:
    """A suite's part of the evaluation: images of each model, their side in pixels, and FLOPs of all."""

    name: str
    images: int
    resolution: int
    total: float


@dataclass(frozen=True)
class WatchPlan:
    """Evaluations of the student while it trains: how many, the images of each, and FLOPs of all."""

    evaluations: int
    images: int
    total: float


@dataclass(frozen=True)
class StagePlan:
    """One stage: what an update is called and how many there are, its FLOPs, and the peak of one process; measure:
    that of other settings of sizes and places."""

    name: str
    unit: str
    updates: int
    flops: float
    memory: Memory
    measure: Measure = field(repr=False, compare=False)
    processes: int = 1
    suites: tuple[SuitePlan, ...] = ()
    watch: WatchPlan | None = None

    @property
    def total(self) -> float:
        return self.flops * self.updates + (self.watch.total if self.watch else 0.0)

    def hours(self, gpu: str, dtype: str) -> float:
        """Time of the whole stage, a GPU per process."""
        return hours_of(self.total, gpu, dtype) / self.processes


@dataclass(frozen=True)
class Plan:
    """parameters: by role, of those that are there and of those that learn. publishing: the memory of stage publish and
    of its gate, which compute little."""

    parameters: dict[str, tuple[int, str]]
    stages: dict[str, StagePlan]
    publishing: dict[str, Memory]


def make_plan(params: Params, root: Path = Path("."), processes: int | None = None) -> Plan:
    """The plan of ``params``, from shapes alone; ``processes``: of training, another number than the params'.

    UserError where the teacher's shapes are not known here, or the resolution does not fit them.
    """
    models = MetaModels.of(params, root)
    costs = Costs(models)
    one = params.train_acdmd
    two = params.train_rtdmd
    own = params.model.resolution
    encode = encoding(models)
    training = (
        ("train_acdmd", "iterations", one.iterations, acdmd_rows, processes or one.processes),
        ("train_rtdmd", "epochs", two.epochs, rtdmd_rows, processes or two.processes),
    )
    require_suites(params, models.configs, params.model.teacher)
    asked = {suite.resolution or own for judging in params.judging.values() for suite in judging.suites}
    sized = {own: costs} | {side: Costs(models.at(side), learning=False) for side in asked - {own}}
    prompts, counts = prompts_of(params, root)
    memories = _Memories(sized, own, root, encode)
    measure = partial(memories.memory, "cache_teacher", 1)
    stages = [StagePlan("cache_teacher", "prompts", prompts, encode.flops, measure(params), measure)]
    for name, unit, updates, rows, number in training:
        flops = flops_of(rows(params), costs, name)
        measure = partial(memories.memory, name, number)
        watch = _watch(name, updates, params, sized, counts)
        stages.append(StagePlan(name, unit, updates, flops, measure(params), measure, number, watch=watch))
    suites = _suites(params, sized, counts)
    images = sum(suite.images for suite in suites)
    flops = sum(suite.total for suite in suites) / images
    measure = partial(memories.memory, "evaluate", 1)
    stages.append(StagePlan("evaluate", "images of each model", images, flops, measure(params), measure, suites=suites))
    return Plan(_parameters(models), {stage.name: stage for stage in stages}, publishing_memory(costs, encode))


@dataclass
class _Memories:
    """The memory of a stage under the plan's settings and under others, from the passes that are counted already."""

    sized: Mapping[int, Costs]
    own: int
    root: Path
    encode: Cost

    def memory(self, stage: str, processes: int, params: Params) -> Memory:
        """Of one process. Passes are counted again where blocks are computed again in the backward pass or no more."""
        sized = self.sized
        if sized[self.own].models.params.adapter != params.adapter:
            models = MetaModels.of(params, self.root)
            sized = {side: Costs(models.at(side), costs.learning) for side, costs in sized.items()}
        if stage == "cache_teacher":
            return cache_memory(sized[self.own].models, params, self.encode)
        if stage == "evaluate":
            largest = max(suite.resolution or self.own for suite in params.evaluate.suites)
            return evaluate_memory(sized[largest], params)
        section = getattr(params, stage)
        memory = (acdmd_memory if stage == "train_acdmd" else rtdmd_memory)(sized[self.own], params, processes)
        return with_watch(memory, section.watch, section.micro_batch, sized) if section.watch.every else memory


def hours_of(flops: float, gpu: str, dtype: str) -> float:
    return flops / (getattr(GPUS[gpu], dtype) * UTILISATION) / 3600


def _watch(
    stage: str, updates: int, params: Params, sized: Mapping[int, Costs], counts: Mapping[str, int] | None
) -> WatchPlan | None:
    """How a training stage's student is watched; None where it is not. ``sized``: the costs by resolution."""
    p = getattr(params, stage).watch
    if not p.every:
        return None
    evaluations = 1 + updates // p.every
    images = 0
    flops = 0.0
    for suite in p.suites:
        own = p.images * min(p.max_prompts, prompts_in(suite.prompts, params, counts))
        costs = sized[suite.resolution or params.model.resolution]
        flops += flops_of(watch_rows(params, own), costs, stage, suite.scorers(p.rewards))
        images += own
    return WatchPlan(evaluations, images, evaluations * flops)


def _suites(params: Params, sized: Mapping[int, Costs], counts: Mapping[str, int] | None) -> tuple[SuitePlan, ...]:
    """The evaluation by suites, each at its own resolution and with its own scorers."""
    own = params.model.resolution
    suites = []
    for suite in params.evaluate.suites:
        resolution = suite.resolution or own
        scorers = suite.scorers(params.evaluate.rewards)
        images = images_of(suite, params, counts)
        each = flops_of(evaluate_rows(params, 1), sized[resolution], "evaluate", scorers)
        read = any(scorer.name == "world_verifier" for scorer in scorers)  # by which the teacher's images are read
        drawn = distribution_rows(params, suite.teacher_images or 0 if read else 0)
        distribution = flops_of(drawn, sized[resolution], "evaluate", ())
        suites.append(SuitePlan(suite.name, images, resolution, images * each + distribution))
    return tuple(suites)


def images_of(suite: SuiteParams, params: Params, counts: Mapping[str, int] | None) -> int:
    """Images of each model that a suite asks for: of its set's prompts as ``counts`` has them by set, None: as far as
    the sources of its prompts say how many there are."""
    if suite.images_per_tag is not None:
        return suite.images_per_tag * tags_of(suite, params)
    prompts = prompts_in(suite.prompts, params, counts)
    return (suite.images_per_prompt or 0) * min(prompts, suite.max_prompts or prompts)


def prompts_in(name: str, params: Params, counts: Mapping[str, int] | None) -> int:
    """Prompts of an evaluation set, as ``counts`` has them by set or, None, as far as its sources say."""
    if counts is not None:
        return counts.get(name, 0)
    return sum(EVALUATION_PROMPTS.get(one.name, 200) for one in params.prepare_prompts.sets[name])


def tags_of(suite: SuiteParams, params: Params) -> int:
    """Tags of a suite's prompts, as far as their sources say."""
    return sum(SOURCES[source.name].tags(source) for source in params.prepare_prompts.sets[suite.prompts])


def prompts_of(params: Params, root: Path) -> tuple[int, Mapping[str, int] | None]:
    """Prompts to encode, one that is in several sets once, and those of each evaluation set: counted where
    prepare_prompts has run on these settings; else UNKNOWN_PROMPTS and None."""
    if not prepared(params, root):
        return UNKNOWN_PROMPTS, None
    train, judged = (read_prompts(root / PREPARED / f"{split}.jsonl") for split in ("train", "eval"))
    return len({prompt.prompt for prompt in (*train, *judged)}), Counter(prompt.set for prompt in judged)


def prepared(params: Params, root: Path) -> bool:
    """Whether prepare_prompts has run on these settings."""
    folder = root / PREPARED
    if not all((folder / name).is_file() for name in ("train.jsonl", "eval.jsonl", "resolved.json")):
        return False
    recorded = read_json(folder / "resolved.json").get("params")
    made_from = params_values(params.model_dump(mode="json"), read_pipeline(root)["prepare_prompts"].params)
    return isinstance(recorded, dict) and all(recorded.get(key) == value for key, value in made_from.items())


def encoding(models: MetaModels) -> Cost:
    """What a prompt costs the text encoders: each reads its longest text."""
    total = [0.0, 0.0]
    for name, encoder in models.text.items():
        length = models.configs[name].get("max_position_embeddings", models.params.model.max_sequence_length)
        if models.configs[name]["model_type"] == "qwen3":
            length = models.params.model.max_sequence_length
        tokens = torch.zeros(ROWS, length, dtype=torch.long, device=META)
        found = count(partial(encoder, tokens), [], [*tensors_of([encoder]), tokens])
        total = [total[0] + found.flops, max(total[1], found.peak)]
    return Cost(flops=total[0], peak=total[1])


def _parameters(models: MetaModels) -> dict[str, tuple[int, str]]:
    """(numbers, what they are) by role."""
    adapter = {name: sum(p.numel() for p in models.adapter(name)) for name in ("acdmd", "fake", "rtdmd")}
    kind = "a copy of the transformer" if models.bank.full else f"LoRA of rank {models.params.adapter.rank}"
    text = size_of(models.text.values())[0]
    scorers = models.scorers.values()
    rewards = {scorer.name: size_of(scorer.modules)[0] + scorer.recorded.parameters for scorer in scorers}
    base = (models.base_size()[0], f"{models.params.model.dtype}, frozen")
    bases = {"teacher (base of every role)": base}
    if models.two_bases:
        bases = {"teacher (base of the fake score)": base, "student (base of the generator)": base}
    found = bases | {
        "generator, stage one (acdmd)": (adapter["acdmd"], f"{kind}, trained in train_acdmd"),
        "generator, stage two (rtdmd)": (adapter["rtdmd"], f"{kind} on top of stage one's, trained in train_rtdmd"),
        "EMA of the generator": (adapter["acdmd"], "of the one that is trained"),
        "fake score (fake)": (
            adapter["fake"],
            f"{kind}, trained in {'train_acdmd' if models.new_fake else 'both stages'}",
        ),
        "decoder (VAE)": (size_of([models.vae])[0], "frozen"),
        "text encoders": (text, models.params.cache_teacher.mode.replace("_", " ")),
    }
    if models.new_fake:
        found["fake score, stage two (fake_rtdmd)"] = (adapter["fake"], f"{kind} on top of it, trained in train_rtdmd")
    return found | {f"reward {name}": (number, "frozen") for name, number in rewards.items()}
