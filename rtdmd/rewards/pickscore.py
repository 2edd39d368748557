"""pickscore: PickScore_v1, a CLIP ViT-H/14 trained on people's choices between two pictures (arXiv 2305.01569).

Score: exp(logit_scale) times the cosine, divided by 26 as in the RL literature, which puts it near 0.8. Differentiable.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rtdmd.rewards.clip import ClipReward, clip_model, folder_hashes, load_tokenizer
from rtdmd.rewards.preprocess import ImageTransform

if TYPE_CHECKING:
    from rtdmd.config import RewardParams

KEY = "rewards: pickscore"
DIVISOR = 26.0


def load(params: RewardParams, device: torch.device) -> PickScore:
    """The scorer of ``params.model``; tokenizer and preprocessing come from ``params.base`` where that is given.

    Raises UserError where a file is missing or a key of the weights is missing or unexpected.
    """
    folder, base = Path(params.model or ""), Path(params.base or params.model or "")
    model = clip_model(folder, f"{KEY}: model", "yuvalkirstain/PickScore_v1", device)
    key = f"{KEY}: model" if params.base is None else f"{KEY}: base"
    tokenizer, transform = load_tokenizer(base, key), ImageTransform.from_folder(base)
    files = folder_hashes(folder, ".safetensors", ".bin", ".json", ".txt")
    if params.base is not None:
        files |= {f"base/{name}": value for name, value in folder_hashes(base, ".json", ".txt").items()}
    return PickScore(model, tokenizer, transform, files, device)


class PickScore(ClipReward):
    """`rtdmd.rewards.protocol.Reward`."""

    name = "pickscore"
    range = (-100 / DIVISOR, 100 / DIVISOR)  # training holds exp(logit_scale) at 100 or below

    def _scaled(self, cosine: Tensor) -> Tensor:
        return self.model.logit_scale.exp() * cosine / DIVISOR
