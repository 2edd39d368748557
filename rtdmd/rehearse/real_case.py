"""One model of `rtdmd rehearse --real-size`: the sizes of its updates, what the plan says of them, and how they run.

What runs is one process's smallest piece of a real update that has its shapes: a micro-batch of prompts in stage one,
a group of images in stage two. Texts are random numbers of the text cache's shape, and a scorer that the plan does not
run (a detector, a vision-language model) takes its memory and no time.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from rtdmd.config import Params
from rtdmd.config.load import validate
from rtdmd.config.presets import merged
from rtdmd.plan.costs import Costs, flops_of
from rtdmd.plan.gpus import GPUS, UTILISATION
from rtdmd.plan.memory import Memory, acdmd_memory, rtdmd_memory
from rtdmd.plan.meta_models import MetaModels
from rtdmd.plan.models import part_configs
from rtdmd.plan.passes import acdmd_rows, rtdmd_rows
from rtdmd.plan.resources import CPU_FLOPS
from rtdmd.plan.text import duration, size
from rtdmd.rehearse import STAGES
from rtdmd.rehearse.memory import Peak, freed_at_once, held
from rtdmd.rehearse.real_models import Configs, random_backbone, random_rewards, shallower
from rtdmd.rehearse.updates import Update, give_moments, peak_epochs, stage_one, stage_two, typical_rounds
from rtdmd.train.learner import Learner

LOSSES = ("fake_ambient", "fake_consistency", "matching", "backprop", "gap", "fake_grad_norm", "generator_grad_norm")
"""Of a step's values those that are compared between precisions."""
_MEMORY = {"train_acdmd": acdmd_memory, "train_rtdmd": rtdmd_memory}
_ROWS = {"train_acdmd": acdmd_rows, "train_rtdmd": rtdmd_rows}


@dataclass(frozen=True)
class Case:
    """``params`` as the user has them, on models of ``configs``; size: images of an update, None: the smallest piece
    that has the run's shapes; cut: what differs from the published depth, for tables."""

    params: Params
    configs: Configs
    root: Path
    size: int | None = None
    cut: str = ""
    shared: dict[str, Costs] = field(default_factory=dict)

    @staticmethod
    def of(params: Params, root: Path, size: int | None = None, blocks: int | None = None) -> Case:
        """Without a watched student, its text cached. UserError where the teacher's shapes are not known here."""
        alone = {"cache_teacher": {"mode": "cache"}} | {stage: {"watch": {"every": 0}} for stage in STAGES}
        case = Case(params, part_configs(params.model, root), root, size).changed(alone)
        return case if blocks is None else case.shallower(blocks)

    @property
    def blocks(self) -> int:
        """Blocks of the transformer, of the first kind where there are two."""
        return int(self.configs["transformer"]["num_layers"])

    def shallower(self, blocks: int) -> Case:
        """With a transformer of so many blocks; unchanged where it has no more."""
        if blocks >= self.blocks:
            return self
        cut = f", {blocks} of {self.blocks} blocks"
        return replace(self, configs=shallower(self.configs, blocks), cut=cut, shared={})

    def small(self) -> Case:
        """Updates of two images, each of them with the generator's."""
        every = {"train_acdmd": {"recipe": "custom", "generator_every": 1}}
        return replace(self.changed(every), size=min(2, self.size or 2))

    def changed(self, changes: dict[str, Any]) -> Case:
        """Under other settings, none of which changes a shape."""
        return replace(self, params=validate(merged(self.params.model_dump(mode="json"), changes)))

    @cached_property
    def sized(self) -> Params:
        one = self.params.train_acdmd
        two = self.params.train_rtdmd
        n = self.size
        first = {"batch_size": n or one.micro_batch, "micro_batch": min(n or one.micro_batch, one.micro_batch)}
        group = two.group_size if n is None else min(two.group_size, max(2, n))
        prompts = 1 if n is None else -(-n // group)
        most = n or prompts * group
        second = {
            "prompts_per_epoch": prompts,
            "group_size": group,
            "micro_batch": min(two.micro_batch, most),
            "fake_batch_size": min(two.fake_batch_size, most),
            "last_step_batch_size": min(two.last_step_batch_size, most),
            "validation": {"every": 0},
        }
        alone = {"processes": 1, "sharding": "none", "shard_group": None}
        return self.changed({"train_acdmd": first | alone, "train_rtdmd": second | alone}).params

    def images(self, stage: str) -> int:
        """Of an update: a round in stage one, an epoch in stage two."""
        one = self.sized.train_acdmd
        two = self.sized.train_rtdmd
        return (
            one.batch_size * one.generator_every if stage == "train_acdmd" else two.prompts_per_epoch * two.group_size
        )

    # What the plan says.
    @property
    def costs(self) -> Costs:
        """The passes of these models, counted once for all sizes."""
        if "costs" not in self.shared:
            self.shared["costs"] = Costs(MetaModels.of(self.params, self.root, self.configs))
        return self.shared["costs"]

    def memory(self, stage: str) -> Memory:
        return _MEMORY[stage](self.costs, self.sized, 1)

    def flops(self, stage: str) -> float:
        steps = self.sized.train_acdmd.generator_every if stage == "train_acdmd" else 1
        return steps * flops_of(_ROWS[stage](self.sized), self.costs, stage)

    def speed(self, device: torch.device, dtype: str | None = None) -> float | None:
        """FLOP/s that a plan reckons with; None on a GPU that it does not know."""
        if device.type == "cpu":
            return self.cpu_speed()
        gpu = known_gpu(torch.cuda.get_device_name(device))
        return None if gpu is None else float(getattr(GPUS[gpu], dtype or self.params.model.dtype)) * UTILISATION

    def cpu_speed(self) -> float:
        """FLOP/s of this machine's processor, at least."""
        return CPU_FLOPS * self.params.run.threads

    def on_gpus(
        self, stage: str, samples: float, device: torch.device, counts: Sequence[int]
    ) -> Iterator[tuple[str, ...]]:
        """Cells for each number of GPUs: seconds of one update as params has it, by ``samples`` images per second each
        and by the plan; the whole stage; the plan's peak. The exchange of gradients is left out."""
        p = getattr(self.params, stage)
        first = stage == "train_acdmd"
        images = p.batch_size if first else p.prompts_per_epoch * p.group_size
        updates = p.iterations if first else p.epochs
        speed = self.speed(device)
        flops = flops_of(_ROWS[stage](self.params), self.costs, stage)
        for count in counts:
            if images % count == 0:
                seconds = images / (samples * count)
                planned = "-" if speed is None else f"{flops / (speed * count):.3g}"
                peak = size(_MEMORY[stage](self.costs, self.params, count).peak)
                yield str(count), f"{seconds:.3g}", planned, duration(seconds * updates / 3600), peak


def known_gpu(name: str) -> str | None:
    """The entry of `rtdmd.plan.gpus` that a driver's name of a GPU has in it."""
    return next((known for known in GPUS if known in name.replace(" ", "")), None)


def measured_updates(case: Case, stage: str, count: int, device: torch.device) -> Iterator[tuple[float, int]]:
    """(seconds, bytes at the peak) of updates, the first of which warms up, on a typical draw of what is drawn."""
    before = held(device)
    with freed_at_once():
        learners, update = _opened(case, stage, device)
        for learner in learners:
            give_moments(learner)
        numbers = (typical_rounds if stage == "train_acdmd" else peak_epochs)(case.sized, count)
        for number in numbers:
            peak = Peak(device, before)
            began = time.perf_counter()
            update(number)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds = time.perf_counter() - began
            yield seconds, peak.bytes()


def losses_of(case: Case, stage: str, dtype: str, device: torch.device) -> dict[str, float]:
    held(device)
    _, update = _opened(case.changed({"model": {"dtype": dtype}}), stage, device)
    return update(0)


def _opened(case: Case, stage: str, device: torch.device) -> tuple[list[Learner], Update]:
    params = case.sized
    second = stage == "train_rtdmd"
    backbone = random_backbone(params, case.configs, device, vae=second)
    shapes = case.costs.models.shapes
    if second:
        reward_models = random_rewards(params.train_rtdmd.rewards, device, case.root, params.run.seed)
        trainer, update = stage_two(params, backbone, reward_models, shapes)
        return list(trainer.learners.values()), update
    first, update = stage_one(params, backbone, shapes)
    return [first.generator, *first.fakes.values()], update
