"""pickscore: PickScore_v1, a CLIP ViT-H/14 trained on people's choices between two pictures (arXiv 2305.01569).

Score: exp(logit_scale) times the cosine, divided by 26 as in the RL literature, which puts it near 0.8. Differentiable.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from rtdmd.common.section import param
from rtdmd.rewards.registration import (
    TEXTS,
    DifferentiableParams,
    Networks,
    Registration,
    Resize,
    Source,
    commit_of,
)

if TYPE_CHECKING:
    import torch

    from rtdmd.rewards.clip import ClipReward

KEY = "rewards: pickscore"
DIVISOR = 26.0


class PickScoreParams(DifferentiableParams):
    """People's choice between two pictures."""

    name: Literal["pickscore"] = param("scorer", source="arXiv 2305.01569")
    model: str = param("PickScore_v1's folder or Hub id", source="yuvalkirstain/PickScore_v1")
    revision: str | None = commit_of("model")
    base: str | None = param(
        "folder or Hub id of tokenizer and preprocessing; null: those of model",
        source="laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        default=None,
    )
    base_revision: str | None = commit_of("base")
    backprop_resize: Resize = param(
        "how images get the model's size where a gradient is asked for; else as its processor's config says (bicubic)",
        source="public code: bilinear; processor ours",
        default="processor",
    )

    sources: ClassVar = {"model": Source("revision"), "base": Source("base_revision", TEXTS)}


def load(params: PickScoreParams, device: torch.device) -> ClipReward:
    """The scorer of ``params.model``; tokenizer and preprocessing come from ``params.base`` where that is given.

    Raises UserError where a file is missing or a key of the weights is missing or unexpected.
    """
    from rtdmd.rewards.clip import ClipReward, clip_model, load_tokenizer
    from rtdmd.rewards.preprocessing import ImageTransform, bilinear
    from rtdmd.rewards.weights import model_hashes, text_hashes

    folder = Path(params.model)
    base = Path(params.base or params.model)
    model = clip_model(folder, f"{KEY}: model", "yuvalkirstain/PickScore_v1", device)
    key = f"{KEY}: model" if params.base is None else f"{KEY}: base"
    tokenizer = load_tokenizer(base, key)
    transform = ImageTransform.from_folder(base, key)
    files = model_hashes(folder, f"{KEY}: model")
    if params.base is not None:
        files |= text_hashes(base, "base/")
    about = {"files": files, "version": 1, "backprop_resize": params.backprop_resize}
    reward = ClipReward(params, device, model, tokenizer, transform, **about)
    reward.range = (-100 / DIVISOR, 100 / DIVISOR)  # training holds exp(logit_scale) at 100 or below
    reward.scaled = lambda cosine: model.logit_scale.exp() * cosine / DIVISOR
    if params.backprop_resize == "bilinear":
        reward.backprop = bilinear(transform)
    return reward


def cost(params: PickScoreParams, root: Path) -> Networks:
    """Both towers; an image goes through one. ``base`` is CLIP ViT-H/14 in every published use."""
    from rtdmd.rewards.clip import clip_cost, clip_towers
    from rtdmd.rewards.published import CLIP_VIT_H

    return clip_cost(clip_towers(params, "base", root, CLIP_VIT_H))


REWARD = Registration(PickScoreParams, load, cost)
