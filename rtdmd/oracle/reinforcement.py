"""T8: the functions of stage two, unchanged, on the oracle. Where does reinforcement end, and where should it?

`rtdmd.train.rtdmd.RtdmdTrainer` gets the oracle's backbone and a linear reward behind the real `AdapterBank` (mode:
full), `Params` and `Learner`s. For a Gaussian teacher the end is known. Matching and reward together minimise

    F(q) = w_m/D E_t κ_t KL(q_t || p_t) - w_r E_q r,   κ_t = t²/(1-t)² (s = 0, statement T4), D = 2 dimensions

over the distribution q of x̂_0. With p = N(m, V) and r = b·x the best q is N(m + δ, V): any other covariance only adds
to the KL, and in the mean F is quadratic,

    δ = (D w_r/w_m) Λ⁻¹ b,   Λ = E_t[t² ((1-t)² V + t² I)⁻¹]

That is not p exp(β r), whose shift is β V b: the renoised KL holds a mean less than the plain one does.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor

from rtdmd.backbones.protocol import Conditioning
from rtdmd.common.sums import sum_in_order
from rtdmd.config import TrainRtdmdParams
from rtdmd.flow.ambient import draw_renoise_time
from rtdmd.flow.cps import cps_mean_std
from rtdmd.oracle.backbone import OracleBackbone, OracleReward
from rtdmd.oracle.gradients import ETA, LEVELS
from rtdmd.oracle.identities import LINEAR, relative_error
from rtdmd.oracle.mixture import Mixture, ring
from rtdmd.oracle.setting import Setting
from rtdmd.oracle.training import (
    BatchDraws,
    ReadingAdapterBank,
    energy_distance,
    every_prompt,
    oracle_params,
    sample_generator,
)
from rtdmd.rewards.reward_models import RewardModels
from rtdmd.train.adapters import ADAPTERS, AdapterBank
from rtdmd.train.learner import Terms
from rtdmd.train.losses import RENOISE_HIGH, RENOISE_LOW, RENOISE_MARGIN
from rtdmd.train.rtdmd import RtdmdTrainer

MIXTURE = ring(prompts=2, components=1, radius=1.0, variance=1.0)
"""Teacher of T8's second half: two prompts, one Gaussian each."""

REWARD = "clipscore"  # in whose place the oracle's linear reward stands: a differentiable reward that params know

CORRECTED: dict[str, Any] = {
    "epochs": 250,
    "prompts_per_epoch": 64,
    "group_size": 8,
    "micro_batch": 512,
    "candidate_steps": [0, 1, 2],
    "trained_steps": 3,
    "share_noise": False,
    "share_initial": False,
    "subset_factor": True,
    "baseline": "leave_one_out",
    "advantage_std": "none",
    "advantage_clip": 100.0,
    "density": "gaussian",
    "weights": {"policy": 0.2, "matching": 1.0, "backprop": 0.2, "reference_kl": 0.0},
    "matching_path": "whole_chain",
    "normalise_matching": False,
    "gradient_scaling": "none",
    "backprop_margin": 100.0,
    "backprop_at": "last_step",  # the fixed point is that of the image's own reward
    "fake_samples": "data",
    "fake_updates_per_epoch": 4,
    "fake_batch_size": 512,
    "last_step_batch_size": 512,
    "generator_optimizer": {"lr": 3e-3, "weight_decay": 0.0},
    "fake_optimizer": {"lr": 1e-2, "weight_decay": 0.0},
    "lr_decay_fraction": 0.0,
    "ema_decay": 0.98,
    "ema_every": 1,
    "rewards": [{"name": REWARD, "model": "the oracle", "weight": 1.0}],
}
"""Settings of T8's stage two; everything else is the world preset's."""


def linear_reward(x: Tensor) -> Tensor:
    """b·x (B,) of samples (B, ...) with two numbers each."""
    return x.flatten(1) @ torch.tensor(LINEAR, dtype=x.dtype, device=x.device)


def fixed_point(mixture: Mixture, changes: dict[str, Any] | None = None) -> Mixture:
    """The distribution at which stage two with a linear reward should end, for one Gaussian a prompt; ValueError for
    more.

    A matching that draws one of the K steps holds the last one in a K-th of the epochs, with a K-th of its weight.
    """
    if mixture.means.shape[1] != 1:
        raise ValueError(f"the fixed point is known for one Gaussian a prompt, got {mixture.means.shape[1]} components")
    p = oracle_params("train_rtdmd", CORRECTED | (changes or {})).train_rtdmd
    u = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    t = draw_renoise_time(u, torch.zeros_like(u), RENOISE_MARGIN, RENOISE_LOW, RENOISE_HIGH)[:, None]
    values, vectors = torch.linalg.eigh(mixture.covariances[:, 0])
    hold = (t**2 / ((1 - t) ** 2 * values[:, None] + t**2)).mean(1)
    pushed = torch.einsum("pde,d->pe", vectors, torch.tensor(LINEAR, dtype=torch.float64)) / hold
    held = p.weights.matching / (len(LEVELS) - 1 if p.matching_path == "random_step" else 1)
    shift = mixture.dims * p.weights.backprop / held * torch.einsum("pde,pe->pd", vectors, pushed)
    return Mixture(mixture.weights, mixture.means + shift[:, None], mixture.covariances)


@dataclass(frozen=True)
class Outcome:
    """A trained stage two against its fixed point: gained reward over the predicted gain, total variance over the
    predicted one (of the prompt that is furthest off), mean energy distance between the two distributions, seconds, and
    the samples."""

    reward: float
    variance: float
    distance: float
    seconds: float
    samples: Tensor


def student_mixture(mixture: Mixture) -> Mixture:
    """The Gaussians whose own few-step sampler ends in ``mixture``: stage one's perfect result in closed form.

    With the exact velocity of N(m, V) every step is affine, the mean stays, and the sampler ends in a smaller V. Along
    each eigenvector of the covariance the starting variance is found by bisection.
    """
    values, vectors = torch.linalg.eigh(mixture.covariances)
    low = values.clone()
    high = 100 * values
    for _ in range(60):
        middle = (low + high) / 2
        below = few_step_variance(middle) < values
        low = torch.where(below, middle, low)
        high = torch.where(below, high, middle)
    return Mixture(mixture.weights, mixture.means, torch.einsum("pjde,pje,pjfe->pjdf", vectors, low, vectors))


def few_step_variance(variance: Tensor) -> Tensor:
    """Variance of x̂_0 from the exact velocity of N(m, variance) in one dimension, any shape, by the CPS equations."""
    flat = variance.reshape(-1)
    total = torch.ones_like(flat)
    for sigma, tau in pairwise(LEVELS):
        level = torch.full_like(flat, sigma)
        lower = torch.full_like(flat, tau)
        slope = (sigma - (1 - sigma) * flat) / ((1 - sigma) ** 2 * flat + sigma**2)
        gain, std = cps_mean_std(torch.ones_like(flat)[:, None], slope[:, None], level, lower, ETA)
        total = gain[:, 0] ** 2 * total + std**2
    return total.reshape(variance.shape)


class StudentAdapterBank(ReadingAdapterBank):
    """Roles on the teacher's distributions followed by the student's: the generator (and reference) reads the
    latter."""

    def read(self, role: str, x: Tensor, cond: Conditioning) -> Conditioning:
        """The teacher's prompt, 0 to P - 1, or the student's of the same number, P to 2 P - 1."""
        if role not in ("generator", "reference"):
            return cond
        return Conditioning(
            {"prompt": cond.tensors["prompt"] + cast(OracleBackbone, self.backbone).mixture.prompts // 2}
        )


def start_stage_two(mixture: Mixture, changes: dict[str, Any], setting: Setting, width: int = 32) -> RtdmdTrainer:
    """The trainer; the generator starts at the teacher's distribution, the fake score as the teacher."""
    params = oracle_params("train_rtdmd", CORRECTED | changes)
    precision = torch.bfloat16 if setting.dtype == "bfloat16" else torch.float32
    student = student_mixture(mixture)
    both = Mixture(
        torch.cat([mixture.weights, student.weights]),
        torch.cat([mixture.means, student.means]),
        torch.cat([mixture.covariances, student.covariances]),
    )
    backbone = OracleBackbone(both, width, setting.seed, precision)
    bank = StudentAdapterBank(backbone, params.adapter, ADAPTERS["train_rtdmd"], setting.seed)
    rewards = RewardModels({REWARD: OracleReward(formula=linear_reward)}, backbone.device)
    return RtdmdTrainer(params, backbone, rewards, every_prompt(mixture, 1), adapters=bank)


@dataclass(frozen=True)
class OtherFake:
    """Velocities whose fake score is exact for another distribution, so that matching has a known direction
    everywhere."""

    bank: AdapterBank
    mixture: Mixture

    def velocity(self, role: str, x: Tensor, sigma: Tensor, cond: Conditioning, **more: Any) -> Tensor:
        if role == "fake":
            return self.mixture.velocity(x, sigma, cond.tensors["prompt"])
        return self.bank.velocity(role, x, sigma, cond, **more)


def with_other_fake(trainer: RtdmdTrainer, mixture: Mixture) -> RtdmdTrainer:
    """The trainer with a fake score that is exact for another distribution."""
    return trainer.variant(adapters=cast(AdapterBank, OtherFake(trainer.adapters, mixture)))


def images(p: TrainRtdmdParams, mixture: Mixture) -> tuple[Conditioning, list[dict[str, Any]], Tensor]:
    """Conditioning, records and groups of one epoch: prompts 0, 1, ..., 0, 1, ..., a group each."""
    groups = torch.arange(p.prompts_per_epoch * p.group_size) // p.group_size
    prompts = groups % mixture.prompts
    records = [{"prompt": str(int(prompt)), "metadata": None} for prompt in prompts]
    return every_prompt(mixture, mixture.prompts).index(prompts.to(mixture.means.device)), records, groups


def matching_as_a_reward(setting: Setting, path: str = "reward", size: int = 4000) -> float:
    """T8. Matching's gradient by the last step and a reward for the others, against that through the whole chain:
    relative error over the generator's last layer (the earlier ones start with none), `size` groups of 8."""
    mixture = MIXTURE.to(setting.device)
    other = mixture.affine(torch.tensor([0.3, 0.4], dtype=torch.float64, device=setting.device), 1.3)
    sums = []
    for name in (path, "whole_chain"):
        changes = {
            "matching_path": name,
            "prompts_per_epoch": size,
            "micro_batch": 8 * size,
            "last_step_batch_size": 8 * size,
        }
        trainer = with_other_fake(start_stage_two(mixture, changes, setting, width=8), other)
        steps = trainer.p.candidate_steps
        cond, records, groups = images(trainer.p, mixture)
        draws = BatchDraws(setting.seed, "oracle two", 0, tuple(range(len(records))), (2, 1, 1), mixture.means.device)
        rollout = trainer.roll_out(cond, records, groups, steps, draws)
        terms = Terms(trainer.generator, dict(trainer.p.weights))
        trainer.last_step(rollout, draws, terms)
        trainer.policy_gradient(rollout, torch.zeros(len(records)), steps, terms)
        gradient = terms.sums["matching"]
        if gradient.total is None:
            raise ValueError("matching has no gradient")
        sums.append(torch.cat([part.flatten() for part in gradient.total[-2:]]))
    return relative_error(*sums)


def train_stage_two(mixture: Mixture, changes: dict[str, Any], setting: Setting, width: int = 32) -> AdapterBank:
    """Stage two on the oracle; returns the roles with the EMA generator in place. `changes` to CORRECTED."""
    trainer = start_stage_two(mixture, changes, setting, width)
    shape = trainer.backbone.latent_shape()
    device = trainer.backbone.device
    cond, records, _ = images(trainer.p, mixture)
    for step in range(trainer.p.epochs):
        draws = BatchDraws(setting.seed, "oracle two", step, tuple(range(len(records))), shape, device)
        trainer.step(cond, records, draws)
    trainer.ema.swap()
    return trainer.adapters


def outcome(setting: Setting, mixture: Mixture = MIXTURE, width: int = 32, **changes: Any) -> Outcome:
    """Train stage two with `changes` and compare it with its fixed point, on 100 000 samples."""
    mixture = mixture.to(setting.device)
    start = time.perf_counter()
    bank = train_stage_two(mixture, changes, setting, width)
    seconds = time.perf_counter() - start
    target = fixed_point(mixture.to("cpu"), changes)
    samples = sample_generator(bank, mixture, 100_000, seed=1).double().cpu()
    prompt = torch.arange(len(samples)) % mixture.prompts
    parts = [samples[prompt == p] for p in range(mixture.prompts)]
    teacher = linear_reward(mixture.to("cpu").mean()).mean()
    aim = linear_reward(target.mean()).mean()
    ratios = [float(torch.cov(part.T).trace() / target.covariance()[p].trace()) for p, part in enumerate(parts)]
    exact = target.sample(torch.arange(6000) % mixture.prompts, torch.Generator().manual_seed(1))
    distances = [energy_distance(part[:3000], exact[p :: mixture.prompts]) for p, part in enumerate(parts)]
    gain = torch.stack([linear_reward(part).mean() for part in parts]).mean() - teacher
    furthest = max(ratios, key=lambda ratio: abs(ratio - 1))
    return Outcome(float(gain / (aim - teacher)), furthest, sum_in_order(distances) / len(distances), seconds, samples)


@cache
def reached(setting: Setting, path: str) -> Outcome:
    """The outcome of one way of matching; cached, since two rows of the table read one training."""
    return outcome(setting, matching_path=path)
