"""Tiny CLIPs in the layouts of openai's ViT-L/14, LAION's ViT-H/14 and PickScore: both towers, tokenizer, settings."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

from rtdmd.common.files import load_tensors, read_json, save_tensors, write_json
from rtdmd.common.torch_setup import quiet_imports, quiet_loading
from rtdmd.rehearse.reward_models.files import write_beside
from rtdmd.rehearse.tokenizers import WORDS, clip_tokenizer, write_clip
from rtdmd.rewards.published import CLIP_VIT_L

with quiet_imports():
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTokenizer

WIDTH = 16
EMBEDDED = int(CLIP_VIT_L["projection_dim"])
"""As published, for the user's own file of the aesthetic predictor reads that many numbers."""
# pixels
SIDE = 36
PATCH = 12
LENGTH = 77  # tokens of a text, as published
MEAN = [0.48145466, 0.4578275, 0.40821073]
STD = [0.26862954, 0.26130258, 0.27577711]
OLD_COPIES = ("pytorch_model.bin", "flax_model.msgpack", "tf_model.h5")


def text_config(tokenizer: CLIPTokenizer, width: int, length: int) -> CLIPTextConfig:
    """Two layers of CLIP's text tower."""
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=length,
        projection_dim=width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def write_towers(folder: Path, seed: int = 0, side: int = SIDE, length: int = LENGTH, embedded: int = EMBEDDED) -> Path:
    """A random CLIPModel of pictures of ``side`` pixels and texts of ``length`` tokens, which embeds both in
    ``embedded`` numbers, with its tokenizer and settings."""
    tokenizer = clip_tokenizer(length)
    vision = {
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": side,
        "patch_size": PATCH,
    }
    text = text_config(tokenizer, WIDTH, length).to_dict()
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=embedded))
    with quiet_loading():
        model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    settings = {
        "crop_size": {"height": side, "width": side},
        "do_center_crop": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": MEAN,
        "image_processor_type": "CLIPImageProcessor",
        "image_std": STD,
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"shortest_edge": side},
    }
    write_json(folder / "preprocessor_config.json", settings)
    return folder


def write_vit_l(folder: Path) -> None:
    """openai/clip-vit-large-patch14's layout."""
    write_towers(folder)
    write_clip(folder, WORDS)
    write_beside(folder, *OLD_COPIES)


def write_vit_h(folder: Path) -> None:
    """LAION's ViT-H/14 for those who read its texts alone: its weights are there as names, unless whole ones are."""
    with tempfile.TemporaryDirectory() as place:
        made = write_towers(Path(place))
        (made / "model.safetensors").unlink()
        shutil.copytree(made, folder, dirs_exist_ok=True)
    write_clip(folder, WORDS)
    _edit_towers(folder, hidden_act="gelu")
    write_beside(folder, "model.safetensors", "pytorch_model.bin", "open_clip_pytorch_model.bin")


def write_pickscore(folder: Path) -> Path:
    """PickScore_v1's layout of 2023: position counters beside the weights, ViT-H's activation."""
    write_towers(folder)
    _edit_towers(folder, hidden_act="gelu")
    path = folder / "model.safetensors"
    tensors, _ = load_tensors(path)
    tensors["text_model.embeddings.position_ids"] = torch.arange(LENGTH)[None]
    tensors["vision_model.embeddings.position_ids"] = torch.arange((SIDE // PATCH) ** 2 + 1)[None]
    tensors["logit_scale"] = torch.tensor(4.6052)
    save_tensors(tensors, path, {"format": "pt"})
    write_beside(folder, "pytorch_model.bin")
    return folder


def _edit_towers(folder: Path, **entries: Any) -> None:
    path = folder / "config.json"
    config = read_json(path)
    for part in ("text_config", "vision_config"):
        config[part] |= entries
    write_json(path, config)
