"""clipscore: cosine of a CLIP model's image and text embeddings (method page, rewards; public code: logit / 100).

Works with any transformers CLIPModel folder: openai's ViT-L/14 or the embedded world's own. Differentiable.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from rtdmd.common.section import param
from rtdmd.rewards.registration import DifferentiableParams, Networks, Registration, Resize, Source, commit_of

if TYPE_CHECKING:
    import torch

    from rtdmd.rewards.clip import ClipReward

KEY = "rewards: clipscore: model"


class ClipScoreParams(DifferentiableParams):
    """The cosine of image and prompt."""

    name: Literal["clipscore"] = param("scorer", source="arXiv 2104.08718")
    model: str = param("a CLIPModel folder or Hub id", source="public code: openai/clip-vit-large-patch14")
    revision: str | None = commit_of("model")
    resize: Resize = param(
        "how images get the model's size: as its processor's config says (bicubic), or by torchvision's Resize",
        source="public code: bilinear; processor ours (openai's package)",
        default="processor",
    )

    label = "CLIP score"
    sources: ClassVar = {"model": Source("revision")}


def load(params: ClipScoreParams, device: torch.device) -> ClipReward:
    """The scorer of ``params.model``, a folder. UserError where it is missing or holds another kind of model."""
    from rtdmd.rewards.clip import ClipReward, clip_model, load_tokenizer
    from rtdmd.rewards.preprocessing import ImageTransform, bilinear
    from rtdmd.rewards.weights import model_hashes

    folder = Path(params.model)
    model = clip_model(folder, KEY, "openai/clip-vit-large-patch14", device)
    transform = ImageTransform.from_folder(folder, KEY)
    if params.resize == "bilinear":
        transform = bilinear(transform)
    about = {"files": model_hashes(folder, KEY), "version": 1, "resize": params.resize}
    return ClipReward(params, device, model, load_tokenizer(folder, KEY), transform, **about)


def cost(params: ClipScoreParams, root: Path) -> Networks:
    """Both towers; an image goes through one."""
    from rtdmd.rewards.clip import clip_cost, clip_towers
    from rtdmd.rewards.published import CLIP_VIT_L

    return clip_cost(clip_towers(params, "model", root, CLIP_VIT_L))


REWARD = Registration(ClipScoreParams, load, cost)
