"""The reward models of a run on the meta device: their size, and what an image costs, with and without its gradient.

Scorers that pass no gradient and are larger than a tower (vision-language models, a detector) are taken at their
published size; an image costs them 2 FLOPs a parameter and token.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rtdmd.common.errors import UserError
from rtdmd.common.torch_setup import quiet_imports
from rtdmd.plan import published
from rtdmd.plan.models import on_meta
from rtdmd.plan.tally import META
from rtdmd.rewards.aesthetic import Aesthetic
from rtdmd.rewards.clip import ClipReward
from rtdmd.rewards.imagereward import MAX_TOKENS, centre
from rtdmd.rewards.imagereward_model import ImageRewardModel
from rtdmd.rewards.preprocess import ImageTransform, Letterbox

with quiet_imports():
    from transformers import BlipTextConfig, BlipVisionConfig, CLIPConfig, CLIPModel

if TYPE_CHECKING:
    from rtdmd.config import RewardParams

MEAN, STD = (0.5,) * 3, (0.25,) * 3  # a transform's numbers change no shape
LARGE = {
    "hpsv3": (8_291_375_616, 2, 1400),
    "geneval2": (8_767_123_696, 2, 1400),
    "geneval": (68_714_000 + 427_616_513, 4, 1000),
    "ocr": (15_000_000, 4, 1000),
}
"""(parameters, bytes of each, tokens an image): Qwen2-VL-7B, Qwen3-VL-8B, Mask2Former Swin-S with CLIP ViT-L/14,
PP-OCRv4's two networks."""


@dataclass(frozen=True)
class Scorer:
    """A reward's networks, its score of images (B, 3, H, W) where it can be run here, and its size."""

    name: str
    differentiable: bool
    modules: list[nn.Module] = field(default_factory=list)
    score: Callable[[Tensor], Tensor] | None = None
    recorded: tuple[int, int, int] = (0, 0, 0)  # parameters, bytes of each, tokens an image

    def flops_per_image(self) -> int:
        """Of a scorer that is not run here."""
        return 2 * self.recorded[0] * self.recorded[2]


def load_scorer(spec: RewardParams, root: Path = Path(".")) -> Scorer:
    """The reward of a params entry without its weights; a scorer in another process takes nothing of this one."""
    if spec.socket is not None or spec.name == "world_verifier":
        return Scorer(spec.name, spec.differentiable)
    if spec.name in LARGE:
        return Scorer(spec.name, spec.differentiable, recorded=LARGE[spec.name])
    modules, score = BUILDERS[spec.name](spec, root)
    for module in modules:
        module.requires_grad_(False).eval()
    return Scorer(spec.name, spec.differentiable, modules, score)


Built = tuple[list[nn.Module], Callable[[Tensor], Tensor]]


def _clip_model(spec: RewardParams, source: str, root: Path, record: dict[str, Any]) -> Any:
    """A CLIPModel of the folder's config.json, of the record for a Hub id. UserError where the folder has none."""
    config, folder = record, getattr(spec, source)
    if folder is not None and not spec.is_hub_id(source):
        path = root / folder / "config.json"
        if not path.is_file():
            raise UserError(f"rewards: {spec.name}: {source}: {path} is not there")
        config = json.loads(path.read_text(encoding="utf-8"))
    with on_meta(torch.float32):
        return CLIPModel(CLIPConfig(**config))


def _square(model: Any) -> ImageTransform:
    side = model.config.vision_config.image_size
    return ImageTransform(side, (side, side), MEAN, STD, "bicubic")


def _clip(spec: RewardParams, root: Path) -> Built:
    model = _clip_model(spec, "model", root, published.CLIP_VIT_L)
    return [model], ClipReward(model, None, _square(model), {}, META).embed


def _vit_h(spec: RewardParams, root: Path) -> Built:
    model = _clip_model(spec, "base", root, published.CLIP_VIT_H)
    letterbox = Letterbox(model.config.vision_config.image_size, MEAN, STD)
    transform = letterbox if spec.name == "hpsv2" else _square(model)
    return [model], ClipReward(model, None, transform, {}, META).embed


def _aesthetic(spec: RewardParams, root: Path) -> Built:
    model = _clip_model(spec, "base", root, published.CLIP_VIT_L)
    widths = published.AESTHETIC_HEAD
    with on_meta(torch.float32):
        head = nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(widths)))
    reward = Aesthetic(model, head, _square(model), {}, META)
    return [model, head], lambda images: reward.head(ClipReward(model, None, reward.transform, {}, META).embed(images))


def _imagereward(spec: RewardParams, root: Path) -> Built:
    with on_meta(torch.float32):
        vision, text = BlipVisionConfig(**published.BLIP_VISION), BlipTextConfig(**published.BLIP_TEXT)
        model = ImageRewardModel(vision, text, published.BLIP_HEAD)
    side = published.BLIP_VISION["image_size"]
    transform = ImageTransform(side, None, MEAN, STD, "bicubic")

    def score(images: Tensor) -> Tensor:
        tokens = torch.zeros(len(images), MAX_TOKENS, dtype=torch.long, device=META)
        found: Tensor = model(centre(transform(images), side), tokens, None)
        return found

    return [model], score


BUILDERS: dict[str, Callable[[RewardParams, Path], Built]] = {
    "clipscore": _clip,
    "pickscore": _vit_h,
    "hpsv2": _vit_h,
    "aesthetic": _aesthetic,
    "imagereward": _imagereward,
}
