"""The models under evaluation as samplers: whose velocity, which levels, how noisy, and the images they give for a
plan."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from rtdmd.backbones import Backbone, Bases, Conditioning, load_backbone
from rtdmd.backbones.sampling import ImageNoise, Velocity, sample
from rtdmd.common.errors import UserError
from rtdmd.common.progress import progress
from rtdmd.conditioning.text_cache import TextCache
from rtdmd.config import Params
from rtdmd.evaluate.judge import Batch
from rtdmd.evaluate.plan import Item
from rtdmd.train.adapters import load_student


@dataclass(frozen=True)
class Sampler:
    """How one model makes images: velocity over levels ``sigmas`` (K+1,) with CPS noise ``eta`` (0: Euler), on latents
    of ``shape`` (C, H, W)."""

    backbone: Backbone
    velocity: Velocity
    sigmas: Tensor
    eta: float
    guided: bool  # two forward passes per step
    shape: tuple[int, int, int]
    multi_step: bool = False  # the levels are the multi-step teacher's

    @property
    def steps(self) -> int:
        """Sampler steps."""
        return len(self.sigmas) - 1

    @property
    def evaluations(self) -> int:
        """Transformer evaluations per image."""
        return self.steps * (2 if self.guided else 1)

    def resized(self, sized: Backbone) -> Sampler:
        """The same model with the latents and the levels of ``sized``, its base at another resolution: a scheduler
        with a dynamic shift has other levels there."""
        levels = sized.teacher_sigmas if self.multi_step else sized.sigmas
        return replace(self, sigmas=levels(self.steps), shape=sized.latent_shape())


def load_sampler(name: str, params: Params, cache: TextCache, device: torch.device, root: Path) -> Sampler:
    """The sampler of one of evaluate.models, on a backbone of its own so that no adapter outlives its model.

    A student, and ``student_base`` (what it stands on, without adapters, as it was released: few Euler steps without
    guidance), is the student's transformer with the teacher's text encoders and VAE.
    """
    if name == "student_base" and params.model.student is None:
        raise UserError("student_base: model.student is null, so the student's base is the teacher's")
    bases: Bases = "teacher" if name in ("teacher", "teacher_few_step") else "student"
    backbone = load_backbone(params.model, bases=bases, device=device, root=root)
    few = backbone.sigmas(params.model.num_steps)
    shape = backbone.latent_shape()
    if name in ("train_acdmd", "train_rtdmd"):
        student = load_student(params, backbone, name, root)
        return Sampler(backbone, student, few, params.model.eta, guided=False, shape=shape)
    null = cache.null()
    guidance = 1.0 if name == "student_base" else params.model.guidance

    def velocity(x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        return backbone.velocity(backbone.transformer, x, sigma, cond, guidance=guidance, null=null)

    multi_step = name == "teacher"
    levels = backbone.teacher_sigmas(params.model.teacher_steps) if multi_step else few
    guided = guidance != 1 and not backbone.distilled
    return Sampler(backbone, velocity, levels, 0.0, guided, shape, multi_step)


def model_images(
    sampler: Sampler, items: Sequence[Item], cache: TextCache, seed: int, batch_size: int, name: str = ""
) -> Iterator[Batch]:
    """Images (B, 3, H, W) in [0, 1] for the plan's items, batch by batch; their noise is named by seed and item."""
    device = sampler.backbone.device
    for start in progress(range(0, len(items), batch_size), desc=f"evaluate {name}", unit="batch"):
        chunk = items[start : start + batch_size]
        noise = ImageNoise(seed, [item.key for item in chunk], sampler.shape, device)
        cond = cache.of(item.prompt.prompt for item in chunk)
        latents = sample(sampler.velocity, noise, cond, sampler.sigmas, sampler.eta)
        with torch.no_grad():
            yield chunk, sampler.backbone.decode(latents).clamp(0, 1)
