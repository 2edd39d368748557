"""A tiny random Mask2Former folder with the keys of the published checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from rtdmd.common.files import write_json
from rtdmd.common.torch_setup import quiet_imports, quiet_loading
from rtdmd.rehearse.reward_models.files import write_beside
from rtdmd.rewards.geneval_rules import CLASSES

with quiet_imports():
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

SWIN = {
    "embed_dim": 8,
    "depths": [1, 1, 1, 1],
    "num_heads": [1, 1, 2, 2],
    "window_size": 4,
    "image_size": 64,
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}
WIDTHS = {"feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32}
WIDTHS |= {"encoder_feedforward_dim": 32, "dim_feedforward": 32}
SIZES = {"encoder_layers": 1, "decoder_layers": 2, "num_attention_heads": 2, "num_queries": 12}


def write_detector(folder: Path) -> Path:
    """A Mask2Former with random weights that is sure of what it sees, with the keys of the Hub's checkpoint."""
    labels = dict(enumerate(CLASSES))
    config = Mask2FormerConfig(backbone_config=SwinConfig(**SWIN), **WIDTHS, **SIZES, id2label=labels)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        model = Mask2FormerForUniversalSegmentation(config)
    with quiet_loading():
        model.save_pretrained(folder)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for name in [name for name in tensors if ".encoder.swin.layernorm." in name]:
        del tensors[name]  # the older class had no such layer, and kept what is now computed:
    for stage in range(4):
        index = f"model.pixel_level_module.encoder.encoder.layers.{stage}.blocks.0.attention.self."
        tensors[f"{index}relative_position_index"] = torch.zeros(16, 16, dtype=torch.int64)
    tensors["class_predictor.weight"] *= 100
    tensors["model.transformer_module.decoder.mask_predictor.mask_embedder.2.0.weight"] *= 3000
    save_file(tensors, path, metadata={"format": "pt"})
    settings = {"image_processor_type": "Mask2FormerImageProcessor", "size": {"height": 384, "width": 384}}
    write_json(folder / "preprocessor_config.json", settings)
    write_beside(folder, "pytorch_model.bin")
    return folder
