"""The text encoders alone, as cache_teacher loads them: the same conditioning, and no weight of the transformer."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from rtdmd.conditioning.text_cache import text_encoder
from tests.backbones.families import PROMPTS, Loaded


def test_conditioning_without_the_transformer_is_the_same(loaded: Loaded, tmp_path: Path) -> None:
    folder = tmp_path / "teacher"
    shutil.copytree(loaded.folder, folder)
    for weights in (folder / "transformer").glob("*.safetensors"):
        weights.unlink()  # nobody looks for them
    encode = text_encoder(loaded.family.params(folder), "cpu", tmp_path)
    theirs = loaded.backbone.encode(PROMPTS).tensors
    ours = encode(PROMPTS).tensors
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]) and tensor.device.type == "cpu", name
