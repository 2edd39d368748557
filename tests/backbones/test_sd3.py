"""The SD3 backbone against diffusers' own StableDiffusion3Pipeline, on tiny random models of the real classes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from rtdmd.backbones import Conditioning, load_backbone
from rtdmd.backbones.sampling import rollout
from rtdmd.backbones.sd3 import SD3Backbone
from rtdmd.common.errors import UserError
from rtdmd.common.rng import normal
from rtdmd.config import ModelParams, preset
from rtdmd.flow.schedule import raw_few_steps, shift_static
from tests.tiny import make_tiny_teacher

PROMPTS = ["a photo of a red circle", "two squares and a zebra, left of everything that has a name"]


def model_params(teacher: Path, **changes: object) -> ModelParams:
    return preset("world", {"model": {"teacher": str(teacher), **changes}}).model


@pytest.fixture(scope="module")
def backbone(tiny_teacher: Path) -> SD3Backbone:
    return load_backbone(model_params(tiny_teacher), text=True)


@pytest.fixture(scope="module")
def cond(backbone: SD3Backbone) -> Conditioning:
    return backbone.encode(PROMPTS)


@pytest.fixture(scope="module")
def null(backbone: SD3Backbone) -> Conditioning:
    return backbone.encode([""])


def test_encode_is_the_pipelines_encode_prompt_bit_for_bit(backbone: SD3Backbone) -> None:
    hidden, _, pooled, _ = backbone.pipeline.encode_prompt(
        PROMPTS, None, None, do_classifier_free_guidance=False, max_sequence_length=1
    )
    cond = backbone.encode(PROMPTS)
    assert torch.equal(cond.tensors["encoder_hidden_states"], hidden)
    assert torch.equal(cond.tensors["pooled_projections"], pooled)
    assert hidden.shape == (2, 12 + 1, 24)  # 12 CLIP tokens and one zero in the place of T5
    assert not hidden.requires_grad


def test_with_t5_its_tokens_follow_the_clip_tokens(tmp_path: Path) -> None:
    folder = make_tiny_teacher(tmp_path / "t5", t5=True)
    backbone = load_backbone(model_params(folder, max_sequence_length=7), text=True)
    prompts = ["a red circle", "no"]
    hidden, _, pooled, _ = backbone.pipeline.encode_prompt(
        prompts, None, None, do_classifier_free_guidance=False, max_sequence_length=7
    )
    cond = backbone.encode(prompts)
    assert torch.equal(cond.tensors["encoder_hidden_states"], hidden)
    assert torch.equal(cond.tensors["pooled_projections"], pooled)
    assert hidden.shape == (2, 12 + 7, 24) and hidden[:, 12:].abs().min() > 0
    without = load_backbone(model_params(folder))
    assert without.pipeline.text_encoder_3 is None


def test_null_conditioning_is_the_pipelines_negative_prompt(backbone: SD3Backbone, null: Conditioning) -> None:
    _, negative, _, pooled = backbone.pipeline.encode_prompt(PROMPTS[:1], None, None, max_sequence_length=1)
    assert torch.equal(null.tensors["encoder_hidden_states"], negative)
    assert torch.equal(null.tensors["pooled_projections"], pooled)


@pytest.mark.parametrize("guidance", [1.0, 4.5])
def test_euler_on_our_velocity_equals_the_pipelines_latents(
    backbone: SD3Backbone, cond: Conditioning, null: Conditioning, guidance: float
) -> None:
    x1 = normal((2, *backbone.latent_shape()), 0, "latent")
    theirs = backbone.pipeline(
        PROMPTS,
        height=36,
        width=36,
        num_inference_steps=6,
        guidance_scale=guidance,
        latents=x1.clone(),
        max_sequence_length=1,
        output_type="latent",
    ).images

    @torch.no_grad()
    def velocity(x: torch.Tensor, sigma: torch.Tensor, c: Conditioning) -> torch.Tensor:
        return backbone.velocity(backbone.transformer, x, sigma, c, guidance=guidance, null=null)

    ours = rollout(velocity, x1, cond, backbone.teacher_sigmas(6), 0.0, None)[-1]
    assert (ours - theirs).abs().max() < 1e-5
    assert (ours - x1).abs().max() > 0.1  # the chain went somewhere


def test_encode_images_inverts_the_scaling_of_decode(backbone: SD3Backbone) -> None:
    images = torch.rand(2, 3, 36, 36, generator=torch.Generator().manual_seed(0))
    latents = backbone.encode_images(images)
    mode = backbone.pipeline.vae.encode(2 * images - 1).latent_dist.mode()
    assert latents.shape == (2, *backbone.latent_shape()) == (2, 4, 9, 9)
    assert torch.allclose(latents / 1.3 + 0.1, mode, atol=1e-5)


def test_few_step_levels_are_the_schedulers(backbone: SD3Backbone) -> None:
    assert torch.allclose(backbone.sigmas(4), torch.tensor([1.0, 0.9, 0.75, 0.5, 0.0]), atol=1e-7)
    for steps in (1, 2, 3, 8):
        expected = torch.cat([shift_static(raw_few_steps(steps), 3.0), torch.zeros(1)])
        assert torch.allclose(backbone.sigmas(steps), expected, atol=1e-6)
    assert backbone.sigmas(4).dtype == torch.float32


def test_teacher_levels_are_set_timesteps_and_leave_the_pipelines_scheduler_alone(backbone: SD3Backbone) -> None:
    before = backbone.pipeline.scheduler.sigmas.clone()
    levels = backbone.teacher_sigmas(28)
    assert torch.equal(backbone.pipeline.scheduler.sigmas, before)
    backbone.pipeline.scheduler.set_timesteps(28)
    assert torch.equal(levels, backbone.pipeline.scheduler.sigmas)
    assert levels.shape == (29,) and levels[0] == 1 and levels[-1] == 0


def test_a_scheduler_with_dynamic_shifting_is_followed(tiny_teacher: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_teacher, tmp_path / "dynamic"))
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"use_dynamic_shifting": True}))
    loaded = load_backbone(model_params(folder), vae=False)
    tokens, slope = 9, (1.15 - 0.5) / (4096 - 256)
    shift = torch.tensor(0.5 + slope * (tokens - 256)).exp().item()
    expected = torch.cat([shift_static(raw_few_steps(4), shift), torch.zeros(1)])
    assert torch.allclose(loaded.sigmas(4), expected, atol=1e-6)


def test_lora_targets_are_exactly_the_joint_attentions_linear_layers(backbone: SD3Backbone) -> None:
    names = [f"attn.{n}" for n in ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj")]
    attention = {f"transformer_blocks.{block}.{name}" for block in (0, 1) for name in names}
    attention.add("transformer_blocks.0.attn.to_add_out")  # the last block has no text output
    assert set(backbone.lora_targets("attention")) == attention
    mlp = {f"transformer_blocks.{block}.ff.net.{part}" for block in (0, 1) for part in ("0.proj", "2")}
    mlp |= {f"transformer_blocks.0.ff_context.net.{part}" for part in ("0.proj", "2")}
    assert set(backbone.lora_targets("attention_mlp")) == attention | mlp
    assert len(backbone.lora_targets("attention_mlp")) == 15 + 6
    everything = {name for name, m in backbone.transformer.named_modules() if isinstance(m, torch.nn.Linear)}
    assert set(backbone.lora_targets("all")) == everything > attention | mlp


def test_a_missing_folder_and_a_foreign_pipeline_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.teacher: there is no folder .*nowhere"):
        load_backbone(model_params(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"no model_index\.json"):
        load_backbone(model_params(tmp_path))
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    with pytest.raises(UserError, match="is a FluxPipeline"):
        load_backbone(model_params(tmp_path))


def test_a_resolution_that_the_patches_do_not_divide_is_refused(tiny_teacher: Path) -> None:
    with pytest.raises(UserError, match=r"model\.resolution: 40 is not a multiple of 12"):
        load_backbone(model_params(tiny_teacher, resolution=40))


def test_a_relative_teacher_starts_from_root(tmp_path: Path) -> None:
    make_tiny_teacher(tmp_path / "models" / "here")
    model = preset("world", {"model": {"teacher": "./models/here"}}).model
    assert load_backbone(model, vae=False, root=tmp_path).latent_shape() == (4, 9, 9)


def test_a_damaged_part_is_one_line(tmp_path: Path) -> None:
    folder = make_tiny_teacher(tmp_path / "teacher")
    for part in ("transformer/diffusion_pytorch_model", "text_encoder/model"):
        weights = folder / f"{part}.safetensors"
        whole = weights.read_bytes()
        weights.write_bytes(whole[: len(whole) // 2])
        says = (
            rf"model\.teacher: {weights} is damaged \({len(whole) // 2} bytes, but its header describes {len(whole)}\)"
        )
        with pytest.raises(
            UserError, match=says + "; it lies outside this repository: copy or download it there again"
        ):
            load_backbone(model_params(folder), text=True)
        weights.write_bytes(whole)
