"""Tiny random models of the real classes: an SD3 pipeline folder and a CLIP folder with the embedded world's shapes.

36x36 images, 4x9x9 latents, patch 3, 12 text tokens. A folder takes well under a second to make and to load.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from rtdmd.common.torch_setup import quiet_imports
from rtdmd.rehearse.reward_models.clip import text_config, write_towers
from rtdmd.rehearse.tokenizers import clip_tokenizer, t5_tokenizer

with quiet_imports():
    from diffusers import (
        AutoencoderKL,
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )
    from transformers import (
        CLIPTextModelWithProjection,
        T5Config,
        T5EncoderModel,
    )

IMAGE_SIZE, MAX_TOKENS = 36, 12


def tiny_t5(width: int) -> tuple[T5EncoderModel, Any]:
    """A T5 encoder with random weights, and its tokenizer, which spells words in letters."""
    tokenizer = t5_tokenizer()
    config = T5Config(vocab_size=len(tokenizer), d_model=width, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    return T5EncoderModel(config), tokenizer


def tiny_pipeline(seed: int = 0, t5: bool = False) -> StableDiffusion3Pipeline:
    """An SD3 pipeline with random weights and shift 3; like the embedded world's, it has no T5 unless asked for."""
    torch.manual_seed(seed)
    text_encoder_3, tokenizer_3 = tiny_t5(width=24) if t5 else (None, None)
    tokenizer = clip_tokenizer(MAX_TOKENS)
    transformer = SD3Transformer2DModel(
        sample_size=9,
        patch_size=3,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=24,
        caption_projection_dim=16,
        pooled_projection_dim=20,
        pos_embed_max_size=3,
        qk_norm="rms_norm",
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(4, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=IMAGE_SIZE,
        scaling_factor=1.3,
        shift_factor=0.1,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae,
        text_encoder=CLIPTextModelWithProjection(text_config(tokenizer, 8, MAX_TOKENS)),
        tokenizer=tokenizer,
        text_encoder_2=CLIPTextModelWithProjection(text_config(tokenizer, 12, MAX_TOKENS)),
        tokenizer_2=tokenizer,
        text_encoder_3=text_encoder_3,
        tokenizer_3=tokenizer_3,
    )


def make_tiny_teacher(path: Path | str, seed: int = 0, t5: bool = False) -> Path:
    """Write a tiny random SD3 pipeline folder to ``path``; loads as ``model.teacher``."""
    tiny_pipeline(seed, t5).save_pretrained(path, safe_serialization=True)
    return Path(path)


def edit_json(path: Path, **entries: Any) -> None:
    """Set entries of a configuration of a folder."""
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def make_tiny_clip(path: Path | str, seed: int = 0, image_size: int = IMAGE_SIZE) -> Path:
    """Write a tiny random CLIPModel folder (weights, tokenizer, preprocessor config) to ``path``."""
    return write_towers(Path(path), seed, image_size, MAX_TOKENS, embedded=8)
