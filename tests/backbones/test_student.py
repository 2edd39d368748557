"""A student in plain diffusers: its adapter read by the pipeline, our exported scheduler, the pipeline's own call.

At η = 0 plain diffusers and our sampler differ in one thing only: how the same Euler step is rounded. Written as
diffusers writes it, x + (τ - σ) v, on our velocities, it is the pipeline's result bit for bit; written as CPS at η = 0,
(1 - τ) x̂_0 + τ ε̂, it is the same to a few units in the last place. At η = 0.9 a scheduler whose step is CPS gets the
noise that our sampler gets.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from rtdmd.backbones.protocol import PUBLISHED
from rtdmd.backbones.sampling import rollout
from rtdmd.common.files import write_json
from rtdmd.common.rng import normal
from rtdmd.flow.cps import cps_step
from rtdmd.publish.adapter import read_adapter
from rtdmd.publish.reference import stacked_student
from rtdmd.publish.scheduler import scheduler_config
from tests.backbones.families import Loaded, plain

STEPS = 4


class Cps(FlowMatchEulerDiscreteScheduler):
    """The exported scheduler's levels with the CPS step in place of Euler's, and noise that is given."""

    eta: float
    noises: list[Tensor]  # K-1, in the layout of the pipeline's loop

    def step(self, model_output: Tensor, timestep: Tensor, sample: Tensor, return_dict: bool = True) -> tuple[Tensor]:
        if self.step_index is None:
            self._init_step_index(timestep)
        k, rows = self.step_index, len(sample)
        fresh = self.noises[k] if k < STEPS - 1 else torch.zeros_like(sample)
        sigma, tau = (self.sigmas[i].expand(rows) for i in (k, k + 1))
        self._step_index += 1
        return (cps_step(sample, model_output, sigma, tau, self.eta, fresh),)


@pytest.fixture(scope="session")
def published(loaded: Loaded, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as publish writes it: a random adapter through the pipeline's own writer, and the scheduler."""
    folder = tmp_path_factory.mktemp("published") / loaded.family.name
    generator, tensors = torch.Generator().manual_seed(1), {}
    targets = loaded.backbone.lora_targets("attention")
    for name in targets:
        outer, inner = loaded.backbone.transformer.get_submodule(name).weight.shape
        tensors[f"{name}.lora_A.weight"] = 0.3 * torch.randn(2, inner, generator=generator)
        tensors[f"{name}.lora_B.weight"] = 0.3 * torch.randn(outer, 2, generator=generator)
    type(loaded.pipeline).save_lora_weights(
        folder,
        transformer_lora_layers=tensors,
        transformer_lora_adapter_metadata={"r": 2, "lora_alpha": 6, "target_modules": targets, "bias": "none"},
    )
    own = loaded.backbone.own_scheduler()
    levels = loaded.backbone.sigmas(STEPS).tolist()
    config = scheduler_config(levels, stochastic=False) if own is None else own | {"stochastic_sampling": False}
    write_json(folder / "scheduler" / "scheduler_config.json", config)
    return folder


def student(loaded: Loaded, published: Path, scheduler: Any) -> Any:
    """Plain diffusers with the published folder."""
    pipeline = plain(loaded.family, loaded.folder)
    pipeline.load_lora_weights(published, weight_name=PUBLISHED)
    pipeline.scheduler = scheduler.from_pretrained(published, subfolder="scheduler")
    return pipeline


def velocity_of(loaded: Loaded, published: Path) -> Any:
    backbone = loaded.family.load(loaded.folder, text=False, vae=False)
    return torch.no_grad()(stacked_student(backbone, {"published": read_adapter(published)}))


def test_plain_diffusers_runs_the_student_at_eta_0(loaded: Loaded, published: Path) -> None:
    family, x1 = loaded.family, normal((2, *loaded.backbone.latent_shape()), 0, "student")
    pipeline = student(loaded, published, FlowMatchEulerDiscreteScheduler)
    theirs = family.call(pipeline, x1, STEPS, guidance_scale=1.0)
    velocity, levels = velocity_of(loaded, published), pipeline.scheduler.sigmas
    assert (levels - loaded.backbone.sigmas(STEPS)).abs().max() <= (
        1e-6 if loaded.backbone.own_scheduler() is None else 0
    )
    x = x1
    for sigma, tau in pairwise(levels):
        x = x + (tau - sigma) * velocity(x, sigma.expand(len(x)), loaded.cond)
    assert torch.equal(family.returned(pipeline, x), theirs)
    ours = rollout(velocity, x1, loaded.cond, loaded.backbone.sigmas(STEPS), 0.0, None)[-1]
    assert (family.returned(pipeline, ours) - theirs).abs().max() < 1e-5
    base = rollout(velocity_of_base(loaded), x1, loaded.cond, loaded.backbone.sigmas(STEPS), 0.0, None)[-1]
    assert (base - ours).abs().max() > 1e-2  # the adapter counts


def velocity_of_base(loaded: Loaded) -> Any:
    backbone = loaded.backbone
    return torch.no_grad()(lambda x, sigma, cond: backbone.velocity(backbone.transformer, x, sigma, cond))


def test_a_cps_step_in_plain_diffusers_is_our_sampler_at_the_same_noise(loaded: Loaded, published: Path) -> None:
    family, shape = loaded.family, (2, *loaded.backbone.latent_shape())
    x1, noises = normal(shape, 0, "student"), torch.stack([normal(shape, 0, k) for k in range(STEPS - 1)])
    pipeline = student(loaded, published, Cps)
    pipeline.scheduler.eta = 0.9
    pipeline.scheduler.noises = [family.inner(pipeline, z) for z in noises]
    theirs = family.call(pipeline, x1, STEPS, guidance_scale=1.0)
    ours = rollout(velocity_of(loaded, published), x1, loaded.cond, loaded.backbone.sigmas(STEPS), 0.9, noises)[-1]
    assert (family.returned(pipeline, ours) - theirs).abs().max() < 1e-5
    other = rollout(velocity_of(loaded, published), x1, loaded.cond, loaded.backbone.sigmas(STEPS), 0.9, -noises)[-1]
    assert (other - ours).abs().max() > 1e-2  # the noise counts


def test_the_published_adapter_is_applied_in_its_strength(
    loaded: Loaded, published: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """alpha / rank B A is added to each weight, without a word."""
    from safetensors.torch import load_file

    backbone = loaded.family.load(loaded.folder, text=False, vae=False)
    x, sigma = normal((2, *backbone.latent_shape()), 0, "x"), torch.tensor([0.9, 0.3])
    capfd.readouterr()
    velocity = stacked_student(backbone, {"published": read_adapter(published)})
    assert capfd.readouterr() == ("", "")
    with torch.no_grad():
        adapted = velocity(x, sigma, loaded.cond)
        merged = loaded.family.load(loaded.folder, text=False, vae=False)
        tensors = load_file(published / PUBLISHED)
        for name in merged.lora_targets("attention"):
            a, b = (tensors[f"transformer.{name}.lora_{side}.weight"] for side in "AB")
            merged.transformer.get_submodule(name).weight += 6 / 2 * b @ a
        expected = merged.velocity(merged.transformer, x, sigma, loaded.cond)
    assert torch.allclose(adapted, expected, atol=1e-5)
    assert len(tensors) == 2 * len(merged.lora_targets("attention"))
