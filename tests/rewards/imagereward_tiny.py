"""A tiny ImageReward folder in the published layout: BLIP's names, med_config.json, BERT's vocabulary.

Weights are a formula, not a generator's numbers, so that the same file can be made anywhere and scored by the published
package. Needs nothing of ours.
"""

from __future__ import annotations

import json
from pathlib import Path
from string import ascii_lowercase

import torch
from torch import Tensor

VISION, TEXT, INNER, LAYERS, PATCH, SIDE = 32, 48, 64, 2, 16, 32
HEAD = {0: (TEXT, 1024), 2: (1024, 128), 4: (128, 64), 6: (64, 16), 7: (16, 1)}
VOCABULARY = [
    *("[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    *("photo", "red", "circle", "of", "##ed", ",", ".", "[", "]"),
    *ascii_lowercase,
    *(f"##{letter}" for letter in ascii_lowercase),
]
MED_CONFIG = {
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": TEXT,
    "intermediate_size": INNER,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 64,
    "model_type": "bert",
    "num_attention_heads": 4,
    "num_hidden_layers": LAYERS,
    "pad_token_id": 0,
    "add_type_embeddings": False,
    "vocab_size": len(VOCABULARY) + 2,  # [DEC] and [ENC]
    "encoder_width": VISION,
    "add_cross_attention": True,
}


def _linear(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _attention(name: str, width: int, seen: int) -> dict[str, tuple[int, ...]]:
    return {
        **_linear(f"{name}.self.query", width, width),
        **_linear(f"{name}.self.key", seen, width),
        **_linear(f"{name}.self.value", seen, width),
        **_linear(f"{name}.output.dense", width, width),
        **_norm(f"{name}.output.LayerNorm", width),
    }


def shapes() -> dict[str, tuple[int, ...]]:
    """Published name -> shape."""
    eye, text = "blip.visual_encoder", "blip.text_encoder"
    found: dict[str, tuple[int, ...]] = {
        f"{eye}.cls_token": (1, 1, VISION),
        f"{eye}.pos_embed": (1, (SIDE // PATCH) ** 2 + 1, VISION),
        f"{eye}.patch_embed.proj.weight": (VISION, 3, PATCH, PATCH),
        f"{eye}.patch_embed.proj.bias": (VISION,),
        **_norm(f"{eye}.norm", VISION),
        f"{text}.embeddings.word_embeddings.weight": (len(VOCABULARY) + 2, TEXT),
        f"{text}.embeddings.position_embeddings.weight": (64, TEXT),
        **_norm(f"{text}.embeddings.LayerNorm", TEXT),
        **_linear("blip.vision_proj", VISION, 256),
        **_linear("blip.text_proj", TEXT, 256),
    }
    for i in range(LAYERS):
        block, layer = f"{eye}.blocks.{i}", f"{text}.encoder.layer.{i}"
        found |= _norm(f"{block}.norm1", VISION) | _linear(f"{block}.attn.qkv", VISION, 3 * VISION)
        found |= _linear(f"{block}.attn.proj", VISION, VISION) | _norm(f"{block}.norm2", VISION)
        found |= _linear(f"{block}.mlp.fc1", VISION, 4 * VISION) | _linear(f"{block}.mlp.fc2", 4 * VISION, VISION)
        found |= _attention(f"{layer}.attention", TEXT, TEXT) | _attention(f"{layer}.crossattention", TEXT, VISION)
        found |= _linear(f"{layer}.intermediate.dense", TEXT, INNER) | _linear(f"{layer}.output.dense", INNER, TEXT)
        found |= _norm(f"{layer}.output.LayerNorm", TEXT)
    for i, (inputs, outputs) in HEAD.items():
        found |= _linear(f"mlp.layers.{i}", inputs, outputs)
    return found


def scattered(count: int, number: int) -> Tensor:
    """Numbers in (-1, 1) without visible order: the far decimals of a sine."""
    far = torch.sin(torch.arange(count, dtype=torch.float64) * 12.9898 + 78.233 * number) * 43758.5453
    return 2 * (far - far.floor()) - 1


def published_weights() -> dict[str, Tensor]:
    """Every tensor that the published class saves; norms are near one, the rest large enough to matter."""
    tensors = {"blip.text_encoder.embeddings.position_ids": torch.arange(64)[None]}
    for number, (name, shape) in enumerate(sorted(shapes().items())):
        values = scattered(torch.Size(shape).numel(), number).view(shape).float()
        fan_in = torch.Size(shape[1:]).numel() if len(shape) > 1 else 4
        scale = 2.5 / fan_in**0.5 if "embed" not in name or "proj" in name else 0.6
        tensors[name] = scale * values + (1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0)
    return tensors


def write_imagereward(folder: Path) -> Path:
    """Write ``folder/model`` and ``folder/base``; returns ``folder``."""
    (folder / "model").mkdir(parents=True)
    (folder / "base").mkdir()
    torch.save(published_weights(), folder / "model" / "ImageReward.pt")
    (folder / "model" / "med_config.json").write_text(json.dumps(MED_CONFIG))
    (folder / "base" / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    return folder


def waves(height: int, width: int, shift: int = 0) -> Tensor:
    """A picture (3, H, W) of 8-bit values in [0, 1] with detail at several scales."""
    y, x = torch.meshgrid(torch.arange(height) / height, torch.arange(width) / width, indexing="ij")
    planes = [torch.sin((5 + c + shift) * x + (9 - 2 * c) * y * (1 + x) + c + shift) for c in range(3)]
    return ((torch.stack(planes) * 0.5 + 0.5) * 255).round() / 255
