"""The updates of both training stages by themselves: the real trainers on texts of random numbers, no run's files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from rtdmd.backbones import Conditioning, PipelineBackbone
from rtdmd.common.rng import integers, normal
from rtdmd.common.torch_setup import DTYPES
from rtdmd.config import Params
from rtdmd.rewards.reward_models import RewardModels
from rtdmd.train.acdmd import AcdmdTrainer
from rtdmd.train.distributed.ranks import Ranks
from rtdmd.train.learner import Learner
from rtdmd.train.losses import Draws
from rtdmd.train.rtdmd import RtdmdTrainer

Update = Callable[[int], dict[str, float]]
"""Number of an update -> the values that the last of its steps gives."""
Shapes = Mapping[str, tuple[int, ...]]
PROMPT = {"prompt": "a photo of a red circle", "metadata": None}


def stage_one(
    params: Params, backbone: PipelineBackbone, shapes: Shapes, ranks: Ranks | None = None
) -> tuple[AcdmdTrainer, Update]:
    """A trainer and its update: a round of fake-score updates with its generator update. ``shapes``: of a prompt's
    conditioning; ``ranks``: this process's place where several share the prompts."""
    p = params.train_acdmd
    device = backbone.device
    ranks = ranks or Ranks(device=device)
    mine = ranks.local_shard(p.batch_size)
    texts, null = random_texts(params, shapes, p.batch_size, device)
    cond = texts.index(slice(mine.start, mine.stop))
    trainer = AcdmdTrainer(params, backbone, null, ranks)

    def update(number: int) -> dict[str, float]:
        values: dict[str, float] = {}
        for step in round_of(params, number):
            values = trainer.step(cond, draws_of("train_acdmd", step, mine, backbone))
        return values

    return trainer, update


def stage_two(
    params: Params,
    backbone: PipelineBackbone,
    reward_models: RewardModels,
    shapes: Shapes,
    prompts: list[dict[str, Any]] | None = None,
    ranks: Ranks | None = None,
) -> tuple[RtdmdTrainer, Update]:
    """A trainer and its update: an epoch, always of the same ``prompts``, over and over where they are fewer;
    ``ranks``: this process's place where several share them."""
    p = params.train_rtdmd
    device = backbone.device
    ranks = ranks or Ranks(device=device)
    mine = ranks.local_shard(p.prompts_per_epoch)
    texts, null = random_texts(params, shapes, p.prompts_per_epoch, device)
    cond = texts.to("cpu").index(slice(mine.start, mine.stop))
    trainer = RtdmdTrainer(params, backbone, reward_models, null, ranks)
    given = prompts or [PROMPT]
    records = [given[i % len(given)] for i in mine for _ in range(p.group_size)]
    images = range(mine.start * p.group_size, mine.stop * p.group_size)

    def update(number: int) -> dict[str, float]:
        return trainer.step(cond, records, draws_of("train_rtdmd", number, images, backbone))

    return trainer, update


def random_texts(params: Params, shapes: Shapes, rows: int, device: torch.device) -> tuple[Conditioning, Conditioning]:
    """Random numbers as so many prompts and the empty one, of the right shape and as the text cache stores them: what a
    text says costs nothing."""
    dtype = DTYPES[params.cache_teacher.storage_dtype]
    prompts = {name: normal((rows, *shape), "texts", "prompts", name) for name, shape in shapes.items()}
    null = {name: normal((1, *shape), "texts", "null", name) for name, shape in shapes.items()}
    return Conditioning(prompts).to(device, dtype), Conditioning(null).to(device, dtype)


def draws_of(stage: str, step: int, samples: range, backbone: PipelineBackbone) -> Draws:
    """The random numbers of a step's samples that are here."""
    return Draws(0, stage, step, tuple(samples), backbone.latent_shape(), backbone.device)


def round_of(params: Params, number: int) -> range:
    """The steps of a round of stage one: the last of them updates the generator."""
    every = params.train_acdmd.generator_every
    return range(number * every, (number + 1) * every)


def typical_rounds(params: Params, count: int) -> list[int]:
    """Numbers of rounds of stage one whose rollouts stop, on average, where those of a long training do."""
    p = params.train_acdmd
    steps = params.model.num_steps
    if p.rollout_stop == "last":
        return list(range(count))
    streams = ["train_acdmd"] + ["train_acdmd-generator"] * (p.generator_rollout == "own")

    def distance(number: int) -> float:
        rolled = [(streams[0], step) for step in round_of(params, number)]
        rolled += [(stream, round_of(params, number)[-1]) for stream in streams[1:]]
        executed = [1 + integers(0, steps, 0, stream, step, "stop") for stream, step in rolled]
        return abs(sum(executed) / len(executed) - (steps + 1) / 2)

    return sorted(range(100 * count), key=distance)[:count]


def peak_epochs(params: Params, count: int) -> list[int]:
    """Numbers of epochs of stage two that hold the most: where matching stops at a random step those that stop at the
    last, whose graph then serves back-propagation too."""
    last = params.model.num_steps - 1
    if params.train_rtdmd.matching_path != "random_step":
        return list(range(count))
    numbers = range(100 * count * (last + 1))
    found = [n for n in numbers if integers(0, last + 1, 0, "train_rtdmd", n, "matching-stop") == last]
    return found[:count]


def give_moments(learner: Learner) -> None:
    """AdamW's moments, which every update but the first finds there: of a gradient of zeros."""
    for parameter in learner.parameters:
        parameter.grad = torch.zeros_like(parameter)
    learner.optimizer.step()
    learner.optimizer.zero_grad(set_to_none=True)
