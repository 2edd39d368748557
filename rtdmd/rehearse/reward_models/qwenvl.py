"""Tiny Qwen2-VL and Qwen3-VL folders in the published layout, made in code.

Their language models have a vocabulary of bytes and of the words that the scorers ask with.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor

from rtdmd.common.files import write_json
from rtdmd.common.torch_setup import quiet_imports
from rtdmd.rehearse.reward_models.files import write_beside, write_fast
from rtdmd.rehearse.reward_models.formula import scattered
from rtdmd.rehearse.tokenizers import write_vocabulary
from rtdmd.rewards.hpsv3_instruction import INSTRUCTION

with quiet_imports():
    from transformers import Qwen2Tokenizer

SPECIAL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"),
    *("<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
)
ANSWERS = ("Yes", "yes", "No", "four", "Four", "three", "Three")
WORDS = {
    *("many", "are", "in", "the", "image", "red", "circles", "squares", "Answer", "one", "word", "a", "photo", "of"),
    *re.findall(r"[A-Za-z]+", INSTRUCTION),
    *ANSWERS,
}
CHAT = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SHARD = "model-00001-of-00001.safetensors"
HIDDEN = 32
PATCHES = {"hpsv3": 14, "geneval2": 16}
LAYERS = 2

LANGUAGE: dict[str, Any] = {
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_attention_heads": 2,
    "num_hidden_layers": LAYERS,
    "num_key_value_heads": 1,
    "rms_norm_eps": 1e-06,
    "use_cache": True,
}
"""What both families say of their language model in config.json."""


def vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Tokens and merges: each byte, each of WORDS after a blank, and ANSWERS alone too; numbers stay single digits."""
    merges: dict[tuple[str, str], None] = {}
    for word in (*sorted(f"Ġ{word}" for word in WORDS), *ANSWERS):  # the former first: they then cannot be cut
        for end in range(1, len(word)):
            merges[word[:end], word[end]] = None
    tokens = [*sorted(ByteLevel.alphabet()), *("".join(pair) for pair in merges)]
    return {token: i for i, token in enumerate(dict.fromkeys(tokens))}, list(merges)


def write_tokenizer(folder: Path) -> int:
    """Write the tokenizer's and template's files; returns the rows of the embedding, of which the published one too has
    more than tokens."""
    tokens, merges = vocabulary()
    write_vocabulary(folder, tokens, merges)
    added = {
        str(len(tokens) + i): {
            "content": token,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for i, token in enumerate(SPECIAL)
    }
    config = {
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "additional_special_tokens": list(SPECIAL[1:]),
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "model_max_length": 32768,
        "tokenizer_class": "Qwen2Tokenizer",
    }
    write_json(folder / "tokenizer_config.json", config)
    write_json(folder / "chat_template.json", {"chat_template": CHAT})
    write_fast(folder, Qwen2Tokenizer)
    return len(tokens) + len(SPECIAL) + 40


def write_image_settings(folder: Path, patch: int, own: Mapping[str, Any]) -> None:
    """Write what becomes of an image before the model: the sizes of both families, and a family's own settings."""
    sizes = {"patch_size": patch, "temporal_patch_size": 2, "merge_size": 2}
    write_json(folder / "preprocessor_config.json", {**sizes, **own})


def token_id(token: str) -> int:
    tokens = vocabulary()[0]
    return tokens[token] if token in tokens else len(tokens) + SPECIAL.index(token)


def filled(shapes: Mapping[str, Iterable[int]], gain: float = 2.0) -> dict[str, Tensor]:
    """A tensor for each name: norms near one, biases small, matrices that keep the size of what they multiply."""
    tensors = {}
    for number, (name, shape) in enumerate(sorted(shapes.items())):
        size = torch.Size(shape)
        values = scattered(size.numel(), number).view(size).float()
        if len(size) > 1:
            tensors[name] = values * (1.0 if "embed" in name else gain / size[1:].numel() ** 0.5)
        else:
            near_one = name.endswith("weight")  # the only vectors called weight are norms'
            tensors[name] = 0.3 * values + (1.0 if near_one else 0.0)
    return tensors


def outside_attention(layer: str) -> dict[str, tuple[int, ...]]:
    """Name -> shape of a language layer's weights outside its attention, the same in both families."""
    return {
        f"{layer}.mlp.gate_proj.weight": (48, HIDDEN),
        f"{layer}.mlp.up_proj.weight": (48, HIDDEN),
        f"{layer}.mlp.down_proj.weight": (HIDDEN, 48),
        f"{layer}.input_layernorm.weight": (HIDDEN,),
        f"{layer}.post_attention_layernorm.weight": (HIDDEN,),
    }


def special_ids() -> dict[str, int]:
    return {
        "bos_token_id": token_id("<|endoftext|>"),
        "eos_token_id": token_id("<|im_end|>"),
        "vision_start_token_id": token_id("<|vision_start|>"),
        "vision_end_token_id": token_id("<|vision_end|>"),
        "image_token_id": token_id("<|image_pad|>"),
        "video_token_id": token_id("<|video_pad|>"),
    }


def write_qwen2vl(folder: Path, dtype: str = "bfloat16") -> None:
    """Qwen/Qwen2-VL-7B-Instruct for those who read its texts alone, as HPSv3 does: its shards are there as names."""
    folder.mkdir(parents=True, exist_ok=True)
    vision = {
        "depth": LAYERS,
        "embed_dim": 32,
        "mlp_ratio": 2,
        "num_heads": 2,
        "in_chans": 3,
        "in_channels": 3,
        "hidden_size": HIDDEN,
        "patch_size": PATCHES["hpsv3"],
        "spatial_merge_size": 2,
        "spatial_patch_size": PATCHES["hpsv3"],
        "temporal_patch_size": 2,
    }
    config = {
        "architectures": ["Qwen2VLForConditionalGeneration"],
        **LANGUAGE,
        **special_ids(),
        "vision_token_id": token_id("<|vision_pad|>"),
        "initializer_range": 0.02,
        "max_position_embeddings": 32768,
        "max_window_layers": LAYERS,
        "model_type": "qwen2_vl",
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": False,
        "torch_dtype": dtype,
        "use_sliding_window": False,
        "vision_config": vision,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
        "vocab_size": write_tokenizer(folder),
    }
    write_json(folder / "config.json", config)
    images = {
        "min_pixels": 3136,
        "max_pixels": 12845056,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2VLProcessor",
    }
    write_image_settings(folder, PATCHES["hpsv3"], images)
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": dict.fromkeys("ab", SHARD)})
    write_beside(folder, SHARD)
