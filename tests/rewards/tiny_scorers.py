"""Every scorer of the registry on a tiny model in its published layout."""

from __future__ import annotations

import shutil
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import CLIPTokenizer

from rtdmd.common.files import load_tensors, save_tensors
from rtdmd.config import RewardParams, reward_params
from rtdmd.rewards.registry import REWARDS
from tests.rewards.geneval2_tiny import write_qwen3vl
from tests.rewards.geneval_tiny import make_detector
from tests.rewards.hpsv3_tiny import write_hpsv3
from tests.rewards.imagereward_tiny import write_imagereward
from tests.rewards.open_clip_layout import OpenClip
from tests.rewards.reward_checks import set_activation

HPS = "HPS_v2.1_compressed.pt"
LAION = "sac+logos+ava1-l14-linearMSE.pth"


class Predictor(nn.Module):
    """LAION's: dropout sits between the linear layers, so their numbers are 0, 2, 4, 6, 7."""

    def __init__(self, width: int):
        super().__init__()
        sizes = [width, 12, 8, 6, 4, 1]
        linear = [nn.Linear(a, b) for a, b in pairwise(sizes)]
        drop = [nn.Dropout(0.2), nn.Dropout(0.2), nn.Dropout(0.1)]
        self.layers = nn.Sequential(linear[0], drop[0], linear[1], drop[1], linear[2], drop[2], linear[3], linear[4])

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def write_predictor(folder: Path) -> Predictor:
    """Write LAION's file for the tiny CLIP; returns what it holds."""
    torch.manual_seed(3)
    original = Predictor(8).eval()
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(original.state_dict(), folder / LAION)
    return original


def write_pickscore(folder: Path, clip: Path) -> Path:
    """The layout of 2023: position counters beside the weights, ViT-H's activation."""
    shutil.copytree(clip, folder)
    set_activation(folder, "gelu")
    tensors, _ = load_tensors(folder / "model.safetensors")
    tensors["text_model.embeddings.position_ids"] = torch.arange(12)[None]
    tensors["vision_model.embeddings.position_ids"] = torch.arange(10)[None]
    tensors["logit_scale"] = torch.tensor(4.6052)
    save_tensors(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def write_hps_base(folder: Path, clip: Path) -> Path:
    """Config, tokenizer and preprocessing without weights."""
    folder.mkdir(parents=True)
    for path in clip.glob("*.json"):
        shutil.copy(path, folder)
    set_activation(folder, "gelu")
    return folder


def write_hps(folder: Path, base: Path) -> OpenClip:
    """The file as published, wrapped, with other things beside the weights; returns the model."""
    original = OpenClip(len(CLIPTokenizer.from_pretrained(base))).eval()
    folder.mkdir(parents=True)
    torch.save({"state_dict": original.state_dict(), "epoch": 7, "name": "HPS"}, folder / HPS)
    return original


def entry(name: str, folder: Path, clip: Path) -> RewardParams:
    """The params entry of a scorer whose files are written below ``folder``; ``clip`` is a tiny CLIP folder.

    A scorer's own file has its tiny model; here are those that take pages.
    """
    tiny = REWARDS[name].tiny
    if tiny is not None:
        return reward_params(name=name, **tiny(folder))
    model, base = folder / "model", folder / "base"
    fields: dict[str, object] = {"model": str(model)}
    if name == "clipscore":
        fields = {"model": str(clip)}
    elif name == "pickscore":
        write_pickscore(model, clip)
    elif name == "hpsv2":
        write_hps(model, write_hps_base(base, clip))
        fields |= {"base": str(base)}
    elif name == "aesthetic":
        write_predictor(model)
        fields |= {"base": str(clip)}
    elif name == "imagereward":
        write_imagereward(folder)
        fields |= {"base": str(base)}
    elif name == "hpsv3":
        write_hpsv3(folder)
        fields |= {"base": str(base)}
    elif name == "geneval":
        make_detector(model)
        fields |= {"colour_model": str(clip), "soft_weight": 0.5}
    elif name == "geneval2":
        write_qwen3vl(model)
    else:
        raise AssertionError(f"rtdmd/rewards/scorers/{name}.py registers no tiny model; see docs/rewards.md")
    return reward_params(name=name, **fields)
