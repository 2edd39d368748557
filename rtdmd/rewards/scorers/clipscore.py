"""clipscore: cosine of a CLIP model's image and text embeddings (method page, rewards; public code: logit / 100).

Works with any transformers CLIPModel folder: openai's ViT-L/14 or the embedded world's own. Differentiable.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from rtdmd.common.section import param
from rtdmd.rewards.registration import Networks, Registration, RewardParams, Source, commit_of

if TYPE_CHECKING:
    import torch

    from rtdmd.rewards.clip import ClipReward

KEY = "rewards: clipscore: model"


class ClipScoreParams(RewardParams):
    """The cosine of image and prompt."""

    name: Literal["clipscore"] = param("scorer", source="arXiv 2104.08718")
    model: str = param("a CLIPModel folder or Hub id", source="public code: openai/clip-vit-large-patch14")
    revision: str | None = commit_of("model")

    differentiable = True
    label = "CLIP score"
    sources: ClassVar = {"model": Source("revision")}


def load(params: ClipScoreParams, device: torch.device) -> ClipReward:
    """The scorer of ``params.model``, a folder. UserError where it is missing or holds another kind of model."""
    from rtdmd.rewards.clip import ClipReward, ImageTransform, clip_model, folder_hashes, load_tokenizer

    folder = Path(params.model)
    model = clip_model(folder, KEY, "openai/clip-vit-large-patch14", device)
    files = folder_hashes(folder, ".safetensors", ".json", ".txt")
    tokenizer, transform = load_tokenizer(folder, KEY), ImageTransform.from_folder(folder)
    return ClipReward(params.name, model, tokenizer, transform, files, device)


def cost(params: ClipScoreParams, root: Path) -> Networks:
    """Both towers; an image goes through one."""
    from rtdmd.rewards.published import CLIP_VIT_L
    from rtdmd.rewards.without_weights import clip_cost, clip_towers

    return clip_cost(clip_towers(params, "model", root, CLIP_VIT_L))


REWARD = Registration(ClipScoreParams, load, cost)
