"""T8: the functions of stage one, unchanged, on the oracle. Does the generator reach the teacher's distribution?

`rtdmd.train.acdmd.AcdmdTrainer` gets the oracle's backbone behind the real `AdapterBank` (mode: full) and real
`Params`. Only the noise is drawn in one piece a batch instead of one generator a sample, because 2-D samples are
cheaper than their keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from rtdmd.backbones.protocol import Conditioning
from rtdmd.common.rng import torch_generator
from rtdmd.common.sums import sum_in_order
from rtdmd.config import Params
from rtdmd.config.load import validate
from rtdmd.config.presets import WORLD, merged
from rtdmd.flow.cps import cps_step
from rtdmd.oracle.backbone import OracleBackbone
from rtdmd.oracle.mixture import Mixture, ring
from rtdmd.oracle.setting import Setting
from rtdmd.train.acdmd import AcdmdTrainer
from rtdmd.train.adapters import ADAPTERS, AdapterBank
from rtdmd.train.losses import Draws


@dataclass(frozen=True)
class BatchDraws(Draws):
    """`Draws` with one generator for the whole batch: same names, cheaper for thousands of tiny samples."""

    def normal(self, name: str, groups: Tensor | None = None) -> Tensor:
        """(B, C, H, W) standard normal noise called `name`, one draw a group where `groups` (B,) are given."""
        if groups is not None:
            generator = torch_generator(self.seed, self.stream, self.step, "group", name)
            noise = torch.randn((int(groups.max()) + 1, *self.shape), generator=generator)
            return noise[groups].to(self.device)
        generator = torch_generator(self.seed, self.stream, self.step, name)
        return torch.randn((len(self.samples), *self.shape), generator=generator).to(self.device)

    def uniform(self, name: str) -> Tensor:
        """(B,) uniform numbers in [0, 1) called `name`."""
        generator = torch_generator(self.seed, self.stream, self.step, name)
        return torch.rand(len(self.samples), generator=generator).to(self.device)


def oracle_params(section: str, changes: dict[str, Any]) -> Params:
    """The world preset without guidance, in mode full, with changes to one section (nested as in params.yaml)."""
    full: dict[str, Any] = {"adapter": {"mode": "full"}, "publish": {"format": "merged"}}
    oracle = full | {"model": {"guidance": 1.0}, section: changes}
    return validate(merged(WORLD, oracle), "the oracle's params")


class ReadingAdapterBank(AdapterBank):
    """Adapters that may read another conditioning than they are handed; `read` says which."""

    def read(self, role: str, x: Tensor, cond: Conditioning) -> Conditioning:
        """The conditioning that ``role`` reads at x (B, 2, 1, 1); here the one that it was handed."""
        return cond

    def velocity(self, role: str, x: Tensor, sigma: Tensor, cond: Conditioning, **options: Any) -> Tensor:
        """As `AdapterBank`."""
        return super().velocity(role, x, sigma, self.read(role, x, cond), **options)


class StepAwareAdapterBank(ReadingAdapterBank):
    """Roles whose fake score is told which step of the sampler made the sample it is asked about."""

    step = 0

    def read(self, role: str, x: Tensor, cond: Conditioning) -> Conditioning:
        """`step` beside the fake score's prompt."""
        if role != "fake":
            return cond
        return Conditioning({**cond.tensors, "step": torch.full((len(x),), self.step, device=x.device)})


def train_stage_one(
    mixture: Mixture, changes: dict[str, Any], setting: Setting, width: int = 64, step_aware: bool = False
) -> AdapterBank:
    """Stage one on the oracle; returns the roles with the EMA generator in place. `changes` to train_acdmd;
    `step_aware`: with a fake score that is told the rollout's stop index."""
    params = oracle_params("train_acdmd", changes)
    precision = torch.bfloat16 if setting.dtype == "bfloat16" else torch.float32
    p = params.train_acdmd
    seed = setting.seed
    steps = params.model.num_steps
    backbone = OracleBackbone(mixture, width, seed, precision, steps if step_aware else 0)
    bank = (StepAwareAdapterBank if step_aware else AdapterBank)(
        backbone, params.adapter, ADAPTERS["train_acdmd"], seed
    )
    cond = every_prompt(mixture, p.batch_size)
    trainer = AcdmdTrainer(params, backbone, cond, adapters=bank)
    for step in range(p.iterations):
        draws = BatchDraws(seed, "oracle", step, tuple(range(p.batch_size)), backbone.latent_shape(), backbone.device)
        if isinstance(bank, StepAwareAdapterBank):
            bank.step = trainer.draw_stop(draws)
        trainer.step(cond, draws)
    trainer.ema.swap()
    return bank


def every_prompt(mixture: Mixture, n: int) -> Conditioning:
    """Prompts 0, 1, ..., 0, 1, ... for n samples."""
    return Conditioning({"prompt": torch.arange(n, device=mixture.means.device) % mixture.prompts})


@torch.no_grad()
def sample_generator(bank: AdapterBank, mixture: Mixture, n: int, seed: int, eta: float = 0.9) -> Tensor:
    """x̂_0 (n, 2) of the few-step generator for prompts 0, 1, ..., 0, 1, ..."""
    generator = torch_generator(seed, "oracle", "sample")
    sigmas = bank.backbone.sigmas(4)
    cond = every_prompt(mixture, n)
    x = torch.randn(n, 2, 1, 1, generator=generator).to(mixture.means.device)
    for sigma, tau in pairwise(sigmas):
        level = sigma.expand(n).to(x.device)
        lower = tau.expand(n).to(x.device)
        v = bank.velocity("generator", x, level, cond)
        x = cps_step(x, v, level, lower, eta, torch.randn(x.shape, generator=generator).to(x.device))
    return x.flatten(1)


def energy_distance(x: Tensor, y: Tensor) -> float:
    """2 E|x - y| - E|x - x'| - E|y - y'| (N, d), unbiased; 0 for equal distributions."""
    n = len(x)
    m = len(y)
    within = torch.cdist(x, x).sum() / (n * (n - 1)) + torch.cdist(y, y).sum() / (m * (m - 1))
    return float(2 * torch.cdist(x, y).mean() - within)


def teacher_distance(bank: AdapterBank, mixture: Mixture, n: int = 6000, seed: int = 1) -> float:
    """Mean over prompts of the energy distance between the generator's samples and the teacher's exact distribution."""
    samples = sample_generator(bank, mixture, n, seed).double()
    prompt = every_prompt(mixture, n).tensors["prompt"]
    exact = mixture.sample(prompt, torch.Generator(mixture.means.device).manual_seed(seed))
    distances = [energy_distance(samples[prompt == p], exact[prompt == p]) for p in range(mixture.prompts)]
    return sum_in_order(distances) / len(distances)


MIXTURE = ring(variance=0.2)
"""Teacher of T8: three prompts, three overlapping modes each."""

STAGE_ONE: dict[str, Any] = {
    "iterations": 1500,
    "batch_size": 256,
    "micro_batch": 512,  # one pass, whatever batch a study takes
    "generator_every": 2,
    "generator_optimizer": {"lr": 3e-3},
    "fake_optimizer": {"lr": 1e-2},
    "ema_decay": 0.99,
}
"""Settings of T8 (a tiny network wants large rates); everything else is the world preset's."""


def distance_after(setting: Setting, changes: dict[str, Any], step_aware: bool = False) -> float:
    """T8. Mean energy distance of the stage-one generator to the teacher's distribution; the few-step teacher starts at
    0.13. `changes` to STAGE_ONE."""
    mixture = MIXTURE.to(setting.device)
    return teacher_distance(train_stage_one(mixture, STAGE_ONE | changes, setting, step_aware=step_aware), mixture)


@cache
def stage_one_distance(setting: Setting, renoise_from: str = "step", step_aware: bool = False) -> float:
    """`distance_after` for AC-DMD (`renoise_from`: step) or DMD2 (data); cached, since rows of the table share
    trainings."""
    return distance_after(setting, {"renoise_from": renoise_from}, step_aware)
