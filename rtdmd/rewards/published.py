"""The published scorers as facts: what decides the shapes of their networks, where a plan reads no folder."""

from __future__ import annotations

from typing import Any

Config = dict[str, Any]

CLIP_TEXT_L: Config = {
    "model_type": "clip_text_model",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
    "max_position_embeddings": 77,
    "vocab_size": 49408,
}
"""CLIP ViT-L/14's text tower, which is also the first text encoder of SD3 and FLUX.1."""
_VIT_L: Config = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
}
CLIP_VIT_L: Config = {
    "model_type": "clip",
    "projection_dim": 768,
    "text_config": CLIP_TEXT_L,
    "vision_config": _VIT_L,
}
"""openai/clip-vit-large-patch14."""
CLIP_VIT_H: Config = {
    "model_type": "clip",
    "projection_dim": 1024,
    "text_config": CLIP_TEXT_L
    | {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16},
    "vision_config": _VIT_L
    | {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16},
}
"""laion/CLIP-ViT-H-14-laion2B-s32B-b79K; HPSv2 and PickScore have its shape."""
BLIP_VISION: Config = _VIT_L | {"patch_size": 16}
BLIP_TEXT: Config = {
    "vocab_size": 30524,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 512,
    "encoder_hidden_size": 1024,
    "is_decoder": True,
    "attn_implementation": "eager",
}
BLIP_HEAD = {0: (768, 1024), 2: (1024, 128), 4: (128, 64), 6: (64, 16), 7: (16, 1)}
"""zai-org/ImageReward: BLIP ViT-L/16 at 224 pixels, BERT-base with cross-attention, the reward head."""
AESTHETIC_HEAD = (768, 1024, 128, 64, 16, 1)
"""Widths of LAION's improved predictor, on CLIP ViT-L/14's image embedding."""
