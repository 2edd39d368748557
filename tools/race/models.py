"""Both sides of the race on one random model: our trainers, and the public code's update on a transformer a role."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor, nn

from rtdmd.backbones import Conditioning, PipelineBackbone
from rtdmd.common.rng import integers, permutation
from rtdmd.config import RECIPES, OptimizerParams, Params, preset
from rtdmd.config.presets import merged
from rtdmd.flow.policy import draw_step_subset
from rtdmd.plan.models import part_configs, text_shapes
from rtdmd.rehearse.real_models import Configs, random_backbone
from rtdmd.rehearse.updates import draws_of, random_texts
from rtdmd.rewards.reward_models import load_rewards
from rtdmd.train.acdmd import AcdmdTrainer
from rtdmd.train.losses import Draws
from rtdmd.train.rtdmd import RtdmdTrainer
from rtdmd.world.grammar import captions_of
from tools.race.public import Learnt, Public

CPU = torch.device("cpu")
HEAD = 64  # width of an attention head of a model whose width is asked for
Run = Callable[[str, int], None]
"""(turn, its number) -> the update is made. Turns of stage one: fake turn, generator turn, both turns."""


@dataclass(frozen=True)
class Sizes:
    """width, blocks: of the transformer, None: the world's; batch: images in a pass; prompts, group: of an epoch."""

    width: int | None = None
    blocks: int | None = None
    batch: int = 9
    prompts: int = 6
    group: int = 24


def settings(sizes: Sizes) -> Params:
    """The published settings of both stages on the world's models, on one thread."""
    images = sizes.prompts * sizes.group
    one = {"iterations": 10, "batch_size": sizes.batch, "micro_batch": sizes.batch}
    two: dict[str, Any] = {"epochs": 8, "prompts_per_epoch": sizes.prompts}
    two |= {"group_size": sizes.group, "micro_batch": sizes.batch}
    two |= {"fake_batch_size": images, "last_step_batch_size": images}
    own = {"run": {"threads": 1}, "adapter": {"targets": "attention"}, "train_acdmd": one, "train_rtdmd": two}
    recipe = {stage: RECIPES["published"][stage] for stage in ("train_acdmd", "train_rtdmd")}
    return preset("world", merged(recipe, own))


def configs_of(params: Params, sizes: Sizes) -> Configs:
    """The world's configurations, with the transformer of the size that is asked for."""
    found = part_configs(params.model)
    own = dict(found["transformer"])
    if sizes.blocks is not None:
        own["num_layers"] = sizes.blocks
    if sizes.width is not None:
        heads = sizes.width // HEAD
        own |= {"attention_head_dim": HEAD, "num_attention_heads": heads, "caption_projection_dim": heads * HEAD}
    return found | {"transformer": own}


@dataclass(frozen=True)
class TorchDraws(Draws):
    """Random numbers from torch's generator, as the public code draws them, whatever their names."""

    def normal(self, name: str, groups: Tensor | None = None) -> Tensor:
        if groups is None:
            return torch.randn(len(self.samples), *self.shape)
        numbers, row = torch.unique(groups, return_inverse=True)
        return torch.randn(len(numbers), *self.shape)[row]

    def uniform(self, name: str) -> Tensor:
        return torch.rand(len(self.samples))


@dataclass
class Side:
    """What an update starts from: the base, random texts, an epoch's records, random numbers."""

    params: Params
    configs: Configs
    stage: str
    backbone: PipelineBackbone = field(init=False)
    cond: Conditioning = field(init=False)
    null: Conditioning = field(init=False)

    def __post_init__(self) -> None:
        p = self.params
        two = self.stage == "train_rtdmd"
        self.backbone = random_backbone(p, self.configs, CPU, vae=two)
        rows = p.train_rtdmd.prompts_per_epoch if two else p.train_acdmd.batch_size
        cond, self.null = random_texts(p, text_shapes(p.model, self.configs), rows, CPU)
        self.cond = cond.repeat_interleave(p.train_rtdmd.group_size) if two else cond

    def draws(self, step: int) -> Draws:
        """Of all samples of an update."""
        return draws_of(self.stage, step, range(len(self.cond)), self.backbone)

    @property
    def records(self) -> list[dict[str, Any]]:
        """Of an epoch's images: the world's first captions."""
        p = self.params.train_rtdmd
        captions = captions_of("train")[: p.prompts_per_epoch]
        return [{"prompt": c.prompt, "metadata": c.metadata()} for c in captions for _ in range(p.group_size)]


def ours(params: Params, configs: Configs, stage: str) -> Run:
    side = Side(params, configs, stage)
    if stage == "train_acdmd":
        one = AcdmdTrainer(params, side.backbone, side.null)

        def turn(name: str, number: int) -> None:
            fake = name != "generator turn"
            one.update(side.cond, side.draws(number), fake=fake, generator=name != "fake turn")

        return turn
    reward_models = load_rewards(params.train_rtdmd.rewards, CPU, Path("."))
    two = RtdmdTrainer(params, side.backbone, reward_models, side.null)

    def epoch(name: str, number: int) -> None:
        two.step(side.cond, side.records, side.draws(number))

    return epoch


def theirs(params: Params, configs: Configs, stage: str) -> Run:
    """The public code's updates, with the stops and trained steps of ours."""
    side = Side(params, configs, stage)
    sigmas = side.backbone.sigmas(params.model.num_steps)
    bank = RoleModels(side)
    if stage == "train_acdmd":
        one = Public(params, bank.velocity, bank.learnt, sigmas, side.backbone.decode, {})

        def turn(name: str, number: int) -> None:
            draws = TorchDraws(**vars(side.draws(number)))
            stop = integers(0, len(sigmas) - 1, draws.seed, draws.stream, draws.step, "stop")
            if name != "generator turn":
                one.update_fake(side.cond, draws, stop)
            if name != "fake turn":
                one.update_generator(side.cond, draws, stop)

        return turn
    reward_models = load_rewards(params.train_rtdmd.rewards, CPU, Path("."))
    two = Public(params, bank.velocity, bank.learnt, sigmas, side.backbone.decode, reward_models.rewards)
    p = params.train_rtdmd
    groups = torch.arange(len(side.cond)) // p.group_size

    def epoch(name: str, number: int) -> None:
        draws = TorchDraws(**vars(side.draws(number)))
        order = permutation(len(p.candidate_steps), draws.seed, draws.stream, draws.step, "subset")
        trained = [p.candidate_steps[i] for i in draw_step_subset(order, p.trained_steps)]
        two.epoch(side.cond, side.records, groups, trained, draws)

    return epoch


class RoleModels:
    """A transformer for each role with a LoRA of its own, and stage one's average of the generator: one more."""

    def __init__(self, side: Side) -> None:
        p = side.params
        section = p.train_acdmd if side.stage == "train_acdmd" else p.train_rtdmd
        self.side = side
        self.modules: dict[str, Any] = {"teacher": side.backbone.transformer}
        for role in ("generator", "fake"):
            self.modules[role] = copy.deepcopy(side.backbone.transformer)
            targets = side.backbone.lora_targets(p.adapter.targets)
            self.modules[role].add_adapter(
                LoraConfig(r=p.adapter.rank, lora_alpha=p.adapter.alpha, target_modules=targets)
            )
        self.learnt = {
            "generator": self._learnt("generator", section.generator_optimizer),
            "fake": self._learnt("fake", section.fake_optimizer),
        }
        if side.stage == "train_acdmd":
            self.ema: Any = copy.deepcopy(self.modules["generator"])
        else:
            self.ema = [parameter.detach().clone() for parameter in self.learnt["generator"].parameters]

    def _learnt(self, role: str, settings: OptimizerParams) -> Learnt:
        parameters: list[nn.Parameter] = [one for one in self.modules[role].parameters() if one.requires_grad]
        optimizer = torch.optim.AdamW(
            parameters, settings.lr, settings.betas, settings.eps, settings.weight_decay, fused=False
        )
        return Learnt(parameters, optimizer, settings.max_grad_norm)

    def velocity(self, role: str, x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        """As `rtdmd.backbones`' own."""
        guidance = self.side.params.model.guidance if role == "teacher" else 1.0
        return self.side.backbone.velocity(self.modules[role], x, sigma, cond, guidance=guidance, null=self.side.null)
