"""clipscore: cosine of a CLIP model's image and text embeddings (method page, rewards; public code: logit / 100).

Works with any transformers CLIPModel folder: openai's ViT-L/14 or the embedded world's own. Differentiable.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from rtdmd.rewards.clip import ClipReward, clip_model, folder_hashes, load_tokenizer
from rtdmd.rewards.preprocess import ImageTransform

if TYPE_CHECKING:
    from rtdmd.config import RewardParams

KEY = "rewards: clipscore: model"


def load(params: RewardParams, device: torch.device) -> ClipScore:
    """The scorer of ``params.model``, a folder. UserError where it is missing or holds another kind of model."""
    folder = Path(params.model or "")
    model = clip_model(folder, KEY, "openai/clip-vit-large-patch14", device)
    tokenizer, transform = load_tokenizer(folder, KEY), ImageTransform.from_folder(folder)
    return ClipScore(model, tokenizer, transform, folder_hashes(folder, ".safetensors", ".json", ".txt"), device)


class ClipScore(ClipReward):
    """`rtdmd.rewards.protocol.Reward`: the cosine itself."""

    name = "clipscore"
