"""A tiny ImageReward in the published layout: BLIP's names, med_config.json, BERT's vocabulary."""

from __future__ import annotations

from pathlib import Path
from string import ascii_lowercase

import torch
from torch import Tensor

from rtdmd.common.files import write_json
from rtdmd.common.torch_setup import quiet_imports
from rtdmd.rehearse.reward_models.files import write_beside, write_fast
from rtdmd.rehearse.reward_models.formula import scattered

with quiet_imports():
    from transformers import BertTokenizer

VISION = 32
TEXT = 48
INNER = 64
LAYERS = 2
PATCH = 16
SIDE = 32
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
    eye = "blip.visual_encoder"
    text = "blip.text_encoder"
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
        block = f"{eye}.blocks.{i}"
        layer = f"{text}.encoder.layer.{i}"
        found |= _norm(f"{block}.norm1", VISION) | _linear(f"{block}.attn.qkv", VISION, 3 * VISION)
        found |= _linear(f"{block}.attn.proj", VISION, VISION) | _norm(f"{block}.norm2", VISION)
        found |= _linear(f"{block}.mlp.fc1", VISION, 4 * VISION) | _linear(f"{block}.mlp.fc2", 4 * VISION, VISION)
        found |= _attention(f"{layer}.attention", TEXT, TEXT) | _attention(f"{layer}.crossattention", TEXT, VISION)
        found |= _linear(f"{layer}.intermediate.dense", TEXT, INNER) | _linear(f"{layer}.output.dense", INNER, TEXT)
        found |= _norm(f"{layer}.output.LayerNorm", TEXT)
    for i, (inputs, outputs) in HEAD.items():
        found |= _linear(f"mlp.layers.{i}", inputs, outputs)
    return found


def published_weights() -> dict[str, Tensor]:
    """Every tensor that the published class saves; norms are near one, the rest large enough to matter."""
    tensors = {"blip.text_encoder.embeddings.position_ids": torch.arange(64)[None]}
    for number, (name, shape) in enumerate(sorted(shapes().items())):
        values = scattered(torch.Size(shape).numel(), number).view(shape).float()
        fan_in = torch.Size(shape[1:]).numel() if len(shape) > 1 else 4
        scale = 2.5 / fan_in**0.5 if "embed" not in name or "proj" in name else 0.6
        tensors[name] = scale * values + (1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0)
    return tensors


def write_imagereward(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(published_weights(), folder / "ImageReward.pt")
    write_json(folder / "med_config.json", MED_CONFIG)
    write_beside(folder)


def write_bert(folder: Path) -> None:
    """google-bert/bert-base-uncased for those who read its tokenizer: its weights are there as names."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    about = {"do_lower_case": True, "model_max_length": 512, "tokenizer_class": "BertTokenizer"}
    write_json(folder / "tokenizer_config.json", about)
    write_fast(folder, BertTokenizer)
    write_json(folder / "config.json", {"model_type": "bert"})
    weights = ("model.safetensors", "pytorch_model.bin", "rust_model.ot", "tf_model.h5", "flax_model.msgpack")
    write_beside(folder, *weights, "coreml/fill-mask/float32_model.mlpackage/Manifest.json")
