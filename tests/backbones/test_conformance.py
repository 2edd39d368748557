"""What every backbone must do, against the family's own diffusers pipeline. Parametrised over tests.backbones.families:
a new family gets all of it for free."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rtdmd.backbones import FAMILIES as REGISTERED
from rtdmd.backbones import Conditioning
from rtdmd.backbones.sampling import rollout
from rtdmd.common.errors import UserError
from rtdmd.common.rng import normal
from rtdmd.config import AdapterParams
from rtdmd.train.adapters import AdapterBank
from tests.backbones.families import FAMILIES, PROMPTS, Loaded

TOLERANCE = 1e-5  # of the issue; latents are of order 1


def noise(loaded: Loaded, name: object) -> Tensor:
    return normal((2, *loaded.backbone.latent_shape()), 0, str(name))


def velocity_of(loaded: Loaded, guidance: float = 1.0) -> Callable[[Tensor, Tensor, Conditioning], Tensor]:
    @torch.no_grad()
    def velocity(x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        backbone = loaded.backbone
        return backbone.velocity(backbone.transformer, x, sigma, cond, guidance=guidance, null=loaded.null)

    return velocity


def test_every_family_is_under_test() -> None:
    assert tuple(FAMILIES) == REGISTERED


@pytest.mark.parametrize("prompts", [PROMPTS, [""]])
def test_conditioning_is_encode_prompt_bit_for_bit(loaded: Loaded, prompts: list[str]) -> None:
    with torch.no_grad():  # as the pipeline's call does; with gradients torch picks other attention kernels
        theirs = loaded.family.encoded(loaded.pipeline, prompts, loaded.family.tokens)
    ours = loaded.backbone.encode(prompts).tensors
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
        assert len(tensor) == len(prompts) and not tensor.requires_grad
    first, second = (loaded.backbone.encode([prompt]).tensors["encoder_hidden_states"] for prompt in PROMPTS)
    assert (first - second).abs().max() > 1e-3  # it read them


@pytest.mark.parametrize("guided", [False, True])
def test_euler_on_our_velocity_and_levels_is_the_pipelines_call(loaded: Loaded, guided: bool) -> None:
    family, guidance, x1 = loaded.family, loaded.family.guidance if guided else 1.0, noise(loaded, guided)
    theirs = family.call(loaded.pipeline, x1, steps=5, guidance_scale=guidance)
    ours = rollout(velocity_of(loaded, guidance), x1, loaded.cond, loaded.backbone.teacher_sigmas(5), 0.0, None)[-1]
    assert (family.returned(loaded.pipeline, ours) - theirs).abs().max() < TOLERANCE
    assert (ours - x1).abs().max() > 0.1  # the chain went somewhere
    other = family.call(loaded.pipeline, x1, steps=5, guidance_scale=1.0 if guided else family.guidance)
    assert (other - theirs).abs().max() > 1e-3  # the guidance counts


def test_a_few_steps_at_given_levels_are_the_pipelines(loaded: Loaded) -> None:
    """`sigmas=` of the pipeline's call are raw: its scheduler shifts them, once."""
    x1, raw = noise(loaded, "raw"), [1.0, 0.75, 0.5, 0.25]
    theirs = loaded.family.call(loaded.pipeline, x1, steps=4, guidance_scale=1.0, sigmas=raw)
    ours = rollout(velocity_of(loaded), x1, loaded.cond, loaded.backbone.sigmas(4), 0.0, None)[-1]
    assert (loaded.family.returned(loaded.pipeline, ours) - theirs).abs().max() < TOLERANCE
    assert torch.equal(loaded.backbone.sigmas(4), loaded.pipeline.scheduler.sigmas)


def test_guided_velocity_follows_the_familys_rule(loaded: Loaded) -> None:
    """Classifier-free is the extrapolation of two single velocities; distilled guidance is one forward, no null."""
    backbone, weight = loaded.backbone, loaded.family.guidance
    x, sigma = noise(loaded, "x"), torch.tensor([0.9, 0.3])

    def single(cond: Conditioning) -> Tensor:
        return backbone.velocity(backbone.transformer, x, sigma, cond)

    guided = backbone.velocity(backbone.transformer, x, sigma, loaded.cond, guidance=weight, null=loaded.null)
    assert (guided - single(loaded.cond)).abs().max() > 1e-4
    assert backbone.distilled == loaded.family.distilled
    if backbone.distilled:
        alone = backbone.velocity(backbone.transformer, x, sigma, loaded.cond, guidance=weight)
        assert torch.equal(alone, guided)
        return
    unconditional = single(loaded.null.expand(2))
    expected = unconditional + weight * (single(loaded.cond) - unconditional)
    assert torch.allclose(guided, expected, atol=TOLERANCE)
    with pytest.raises(ValueError, match="null prompt"):
        backbone.velocity(backbone.transformer, x, sigma, loaded.cond, guidance=weight)


def test_rows_do_not_mix(loaded: Loaded) -> None:
    """A row's velocity is its own: levels, prompts and latents of other rows do not reach it."""
    backbone, x, sigma = loaded.backbone, noise(loaded, "rows"), torch.tensor([0.9, 0.3])
    both = backbone.velocity(backbone.transformer, x, sigma, loaded.cond)
    for row in (0, 1):
        one = backbone.velocity(backbone.transformer, x[[row]], sigma[[row]], loaded.cond.index([row]))
        assert torch.allclose(one[0], both[row], atol=TOLERANCE)
    assert both.dtype == torch.float32 and both.shape == x.shape


def test_decode_is_the_pipelines_image_and_passes_gradients(loaded: Loaded) -> None:
    x1 = noise(loaded, "decode")
    theirs = loaded.family.call(loaded.pipeline, x1, steps=2, output_type="pt", guidance_scale=1.0)
    latents = rollout(velocity_of(loaded), x1, loaded.cond, loaded.backbone.teacher_sigmas(2), 0.0, None)[-1]
    latents.requires_grad_()
    ours = loaded.backbone.decode(latents)
    assert (ours - theirs).abs().max() < TOLERANCE
    assert ours.min() >= 0 and ours.max() <= 1 and ours.dtype == torch.float32
    ours.square().sum().backward()
    assert latents.grad is not None and latents.grad.abs().max() > 0


@torch.no_grad()
def test_an_image_that_is_not_square_is_the_pipelines(loaded: Loaded) -> None:
    family = loaded.family
    width = 2 * family.resolution
    wide = replace(loaded, backbone=family.load(loaded.folder, text=False, width=width))
    x1 = noise(wide, "wide")
    theirs = family.call(loaded.pipeline, x1, steps=2, guidance_scale=1.0, width=width, output_type="pt")
    latents = rollout(velocity_of(wide), x1, loaded.cond, wide.backbone.teacher_sigmas(2), 0.0, None)[-1]
    ours = wide.backbone.decode(latents)
    assert ours.shape == (2, 3, family.resolution, width) and (ours - theirs).abs().max() < TOLERANCE


def test_encode_images_inverts_the_scaling_of_decode(loaded: Loaded) -> None:
    """decode(encode_images(x)) is the VAE's own round trip through its mode."""
    side, vae = loaded.family.resolution, loaded.pipeline.vae
    images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    latents = loaded.backbone.encode_images(images)
    assert latents.shape == (2, *loaded.backbone.latent_shape()) and latents.dtype == torch.float32
    with torch.no_grad():
        mode = vae.encode(2 * images - 1).latent_dist.mode()
        expected = (vae.decode(mode, return_dict=False)[0] / 2 + 0.5).clamp(0, 1)
    assert torch.allclose(loaded.backbone.decode(latents), expected, atol=TOLERANCE)


def test_levels_fall_from_one_to_zero_and_are_what_the_pipeline_sets(loaded: Loaded) -> None:
    backbone, pipeline = loaded.backbone, loaded.pipeline
    before = backbone.pipeline.scheduler.sigmas.clone()
    for steps in (1, 2, 4, 8):
        levels = backbone.sigmas(steps)
        assert levels.shape == (steps + 1,) and levels.dtype == torch.float32
        assert levels[0] == 1 and levels[-1] == 0 and (levels.diff() < 0).all()
    assert torch.equal(backbone.pipeline.scheduler.sigmas, before)  # its own state is left alone
    loaded.family.call(pipeline, noise(loaded, 0), steps=3, guidance_scale=1.0)
    assert torch.equal(backbone.teacher_sigmas(3), pipeline.scheduler.sigmas)


def test_lora_targets_are_linear_layers_and_peft_takes_exactly_them(loaded: Loaded) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    backbone = loaded.family.load(loaded.folder, text=False, vae=False)
    linears = {name for name, module in backbone.transformer.named_modules() if isinstance(module, torch.nn.Linear)}
    attention, more, every = (set(backbone.lora_targets(k)) for k in ("attention", "attention_mlp", "all"))
    assert attention < more < every == linears
    assert (len(attention), len(more)) == loaded.family.targets
    inject_adapter_in_model(LoraConfig(r=2, target_modules=backbone.lora_targets("attention")), backbone.transformer)
    adapted = {n.split(".lora_A")[0] for n, _ in backbone.transformer.named_parameters() if ".lora_A" in n}
    assert adapted == attention
    assert set(backbone.lora_targets("attention")) == attention  # the names do not change once layers are wrapped


def test_roles_train_on_it(loaded: Loaded) -> None:
    """One base, adapters beside it: the generator's gradient reaches its adapter only, the teacher stays the base."""
    backbone = loaded.family.load(loaded.folder, text=False, vae=False)
    x, sigma = noise(loaded, "bank"), torch.tensor([0.9, 0.3])
    base = backbone.velocity(backbone.transformer, x, sigma, loaded.cond).detach()
    adapter = AdapterParams(mode="lora", rank=2, alpha=4, targets="attention", gradient_checkpointing=False)
    bank = AdapterBank(backbone, adapter, {"teacher": (), "generator": ("acdmd",), "fake": ("fake",)}, 0)
    weights = bank.trainable("acdmd")
    bank.velocity("generator", x, sigma, loaded.cond).square().mean().backward()
    assert len(weights) == 2 * loaded.family.targets[0]
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in weights)
    frozen = [p for name, p in backbone.transformer.named_parameters() if ".acdmd." not in name]
    assert all(p.grad is None for p in frozen)
    with torch.no_grad():
        for parameter in weights:
            parameter.add_(0.1)
    assert torch.equal(bank.velocity("teacher", x, sigma, loaded.cond), base)
    assert not torch.equal(bank.velocity("generator", x, sigma, loaded.cond), base)


def test_loaded_weights_are_frozen_and_parts_are_optional(loaded: Loaded) -> None:
    bare = loaded.family.load(loaded.folder, text=False, vae=False)
    assert not any(p.requires_grad for p in bare.transformer.parameters()) and not bare.transformer.training
    assert bare.latent_shape() == loaded.backbone.latent_shape()
    assert torch.equal(bare.sigmas(4), loaded.backbone.sigmas(4))
    with pytest.raises(ValueError, match="text=True"):
        bare.encode(["a circle"])
    with pytest.raises(ValueError, match="vae=True"):
        bare.decode(noise(loaded, 0))


def test_bfloat16_weights_give_float32_velocities_near_the_float32_ones(loaded: Loaded) -> None:
    low = loaded.family.load(loaded.folder, text=False, dtype="bfloat16")
    x, sigma = noise(loaded, "x"), torch.tensor([0.9, 0.3])
    ours = low.velocity(low.transformer, x, sigma, loaded.cond)
    reference = loaded.backbone.velocity(loaded.backbone.transformer, x, sigma, loaded.cond)
    assert low.dtype == torch.bfloat16 and ours.dtype == torch.float32
    assert (ours - reference).abs().max() < 0.05 * reference.abs().max()
    assert low.decode(x).dtype == torch.float32


def test_use_prints_nothing(
    loaded: Loaded, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    backbone = loaded.family.load(loaded.folder)
    cond, x = backbone.encode(["a circle"]), noise(loaded, 0)
    backbone.decode(backbone.velocity(backbone.transformer, x, torch.ones(2), cond.expand(2)))
    assert capfd.readouterr() == ("", "")
    assert [str(w.message) for w in recwarn] == []


def test_what_is_not_the_familys_is_refused(loaded: Loaded, tmp_path: Path) -> None:
    other = next(name for name in FAMILIES if name != loaded.family.name)
    with pytest.raises(UserError, match=rf"model\.family: {other} needs a \w+, but .* is a "):
        loaded.family.load(loaded.folder, family=other)
    odd = loaded.family.resolution + 2
    with pytest.raises(UserError, match=rf"model\.resolution: {odd} is not a multiple of"):
        loaded.family.load(loaded.folder, resolution=odd)
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "PixArtSigmaPipeline"}))
    with pytest.raises(UserError, match="is a PixArtSigmaPipeline"):
        loaded.family.load(tmp_path)
