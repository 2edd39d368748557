"""Tiny random FLUX pipelines of the real classes, tokenizers included: FLUX.1 with distilled guidance, FLUX.2 [klein].

32x32 images; the VAEs halve twice, so latents are 8x8 and 16 tokens of 2x2. Text: 12 CLIP tokens, T5 in letters, Qwen3
in bytes behind a chat template of the real one's shape.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from rtdmd.common.torch_setup import quiet_imports
from rtdmd.rehearse.reward_models.clip import text_config
from rtdmd.rehearse.tokenizers import clip_tokenizer, qwen_tokenizer
from tests.tiny import MAX_TOKENS, tiny_t5

with quiet_imports():
    from diffusers import (
        AutoencoderKL,
        AutoencoderKLFlux2,
        FlowMatchEulerDiscreteScheduler,
        Flux2KleinPipeline,
        Flux2Transformer2DModel,
        FluxPipeline,
        FluxTransformer2DModel,
    )
    from transformers import CLIPTextModel, Qwen3Config, Qwen3ForCausalLM

SIDE = 32
VAE: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "block_out_channels": (4, 8, 8),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "latent_channels": 4,
    "sample_size": SIDE,
}


def flux_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """The configuration that FLUX.1 [dev] and FLUX.2 ship."""
    return FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)


def tiny_flux1(seed: int = 0, guidance_embeds: bool = True) -> FluxPipeline:
    """A FLUX.1 pipeline with random weights: one double-stream block, two single-stream blocks."""
    torch.manual_seed(seed)
    tokenizer = clip_tokenizer(MAX_TOKENS)
    text_encoder_2, tokenizer_2 = tiny_t5(width=24)
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=24,
        pooled_projection_dim=8,
        guidance_embeds=guidance_embeds,
        axes_dims_rope=(2, 2, 4),
    )
    vae = AutoencoderKL(**VAE, scaling_factor=1.3, shift_factor=0.1, use_quant_conv=False, use_post_quant_conv=False)
    return FluxPipeline(
        scheduler=flux_scheduler(),
        vae=vae,
        text_encoder=CLIPTextModel(text_config(tokenizer, 8, MAX_TOKENS)),
        tokenizer=tokenizer,
        text_encoder_2=text_encoder_2,
        tokenizer_2=tokenizer_2,
        transformer=transformer,
    )


def tiny_flux2(seed: int = 0, is_distilled: bool = False) -> Flux2KleinPipeline:
    """A FLUX.2 [klein] pipeline with random weights, 28 thin Qwen3 layers and a batch norm with statistics."""
    torch.manual_seed(seed)
    tokenizer = qwen_tokenizer()
    text = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=28,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=128,
    )
    transformer = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=24,
        axes_dims_rope=(2, 2, 2, 2),
        guidance_embeds=False,
    )
    vae = AutoencoderKLFlux2(**VAE)
    vae.bn.running_mean.normal_(0, 0.3)
    vae.bn.running_var.uniform_(0.5, 2.0)
    return Flux2KleinPipeline(
        scheduler=flux_scheduler(),
        vae=vae,
        text_encoder=Qwen3ForCausalLM(text),
        tokenizer=tokenizer,
        transformer=transformer,
        is_distilled=is_distilled,
    )


def make(pipeline: Any, path: Path) -> Path:
    """Write a pipeline folder to ``path``; loads as ``model.teacher``."""
    pipeline.save_pretrained(path, safe_serialization=True)
    return path
