"""A tiny Qwen3-VL folder in the published layout: config, tokenizer, preprocessing, and weights in two shards."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from rtdmd.common.files import write_json
from rtdmd.rehearse.reward_models.files import write_beside, write_shards
from rtdmd.rehearse.reward_models.qwenvl import (
    HIDDEN,
    LANGUAGE,
    LAYERS,
    PATCHES,
    filled,
    outside_attention,
    special_ids,
    token_id,
    write_image_settings,
    write_tokenizer,
)

EYE = 32
PATCH = PATCHES["geneval2"]
HEAD = 16


def shapes(words: int) -> dict[str, tuple[int, ...]]:
    """Published name -> shape (Qwen/Qwen3-VL-8B-Instruct's index)."""
    merged = 4 * EYE
    found: dict[str, tuple[int, ...]] = {
        "lm_head.weight": (words, HIDDEN),
        "model.language_model.embed_tokens.weight": (words, HIDDEN),
        "model.language_model.norm.weight": (HIDDEN,),
        "model.visual.patch_embed.proj.weight": (EYE, 3, 2, PATCH, PATCH),
        "model.visual.patch_embed.proj.bias": (EYE,),
        "model.visual.pos_embed.weight": (16, EYE),
    }
    for merger, width in (("merger", EYE), ("deepstack_merger_list.0", merged)):
        found |= {f"model.visual.{merger}.norm.{kind}": (width,) for kind in ("weight", "bias")}
        for name, size in {"linear_fc1": (merged, merged), "linear_fc2": (HIDDEN, merged)}.items():
            found |= {f"model.visual.{merger}.{name}.weight": size, f"model.visual.{merger}.{name}.bias": size[:1]}
    for i in range(LAYERS):
        eye = f"model.visual.blocks.{i}"
        layer = f"model.language_model.layers.{i}"
        sizes = {"attn.qkv": (3 * EYE, EYE), "attn.proj": (EYE, EYE)}
        sizes |= {"mlp.linear_fc1": (48, EYE), "mlp.linear_fc2": (EYE, 48)}
        for name, size in sizes.items():
            found |= {f"{eye}.{name}.weight": size, f"{eye}.{name}.bias": size[:1]}
        found |= {f"{eye}.norm{n}.{kind}": (EYE,) for n in (1, 2) for kind in ("weight", "bias")}
        found |= {
            f"{layer}.self_attn.q_proj.weight": (2 * HEAD, HIDDEN),
            f"{layer}.self_attn.k_proj.weight": (HEAD, HIDDEN),
            f"{layer}.self_attn.v_proj.weight": (HEAD, HIDDEN),
            f"{layer}.self_attn.o_proj.weight": (HIDDEN, 2 * HEAD),
            f"{layer}.self_attn.q_norm.weight": (HEAD,),
            f"{layer}.self_attn.k_norm.weight": (HEAD,),
            **outside_attention(layer),
        }
    return found


def published_weights(words: int) -> dict[str, Tensor]:
    return filled(shapes(words))


def write_weights(folder: Path, tensors: dict[str, Tensor]) -> None:
    write_shards(tensors, folder / "model.safetensors", 2, {"format": "pt"})


def write_qwen3vl(folder: Path, dtype: str = "bfloat16") -> int:
    """Qwen/Qwen3-VL-8B-Instruct's layout; returns the number of words that the model knows."""
    folder.mkdir(parents=True, exist_ok=True)
    words = write_tokenizer(folder)
    text = LANGUAGE | {
        "attention_bias": False,
        "dtype": dtype,
        "head_dim": HEAD,
        "max_position_embeddings": 262144,
        "model_type": "qwen3_vl_text",
        "rope_scaling": {"mrope_interleaved": True, "mrope_section": [4, 2, 2], "rope_type": "default"},
        "rope_theta": 5000000,
        "vocab_size": words,
    }
    vision = {
        "deepstack_visual_indexes": [0],
        "depth": LAYERS,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": EYE,
        "in_channels": 3,
        "intermediate_size": 48,
        "model_type": "qwen3_vl",
        "num_heads": 2,
        "num_position_embeddings": 16,
        "out_hidden_size": HIDDEN,
        "patch_size": PATCH,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    config = {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        **{name: value for name, value in special_ids().items() if not name.startswith(("bos", "eos"))},
        "model_type": "qwen3_vl",
        "text_config": text | {"bos_token_id": token_id("<|endoftext|>"), "eos_token_id": token_id("<|im_end|>")},
        "tie_word_embeddings": False,
        "vision_config": vision,
    }
    write_json(folder / "config.json", config)
    images = {
        "size": {"longest_edge": 16777216, "shortest_edge": 4096},
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "processor_class": "Qwen3VLProcessor",
        "image_processor_type": "Qwen2VLImageProcessorFast",
    }
    write_image_settings(folder, PATCH, images)
    kind = getattr(torch, dtype)
    write_weights(folder, {name: tensor.to(kind) for name, tensor in published_weights(words).items()})
    write_beside(folder)
    return words
