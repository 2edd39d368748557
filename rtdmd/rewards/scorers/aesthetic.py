"""aesthetic: LAION's improved aesthetic predictor, five linear layers on CLIP ViT-L/14's image embedding.

Trained to predict people's ratings from 1 to 10; the prompt does not matter. Differentiable.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from rtdmd.common.errors import UserError
from rtdmd.common.section import param
from rtdmd.rewards.protocol import Metadata, Pixels, as_read, check_batch, checked
from rtdmd.rewards.registration import DifferentiableParams, Networks, Registration, Source, commit_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

KEY = "rewards: aesthetic"
FILES = ("sac+logos+ava1-l14-linearMSE.pth", "*.pth", "*.safetensors")
LAYERS = (0, 2, 4, 6, 7)
"""Places of the linear layers in the published file; between them lies dropout, which does nothing here."""
VERSION = 1


class AestheticParams(DifferentiableParams):
    """People's rating of looks."""

    name: Literal["aesthetic"] = param("scorer", source="LAION's improved aesthetic predictor")
    model: str = param(
        "a folder or Hub id with the LAION predictor's .pth", source="christophschuhmann/improved-aesthetic-predictor"
    )
    revision: str | None = commit_of("model")
    base: str = param("a CLIP ViT-L/14 folder or Hub id", source="openai/clip-vit-large-patch14")
    base_revision: str | None = commit_of("base")

    sources: ClassVar = {"model": Source("revision", ("*.pth", "*.safetensors")), "base": Source("base_revision")}


def load(params: AestheticParams, device: torch.device) -> Aesthetic:
    """The scorer of ``params.model`` (the predictor's file) and ``params.base`` (the CLIP folder it was trained on).

    Raises UserError where a file is missing or a key of the weights is missing or unexpected.
    """
    from rtdmd.rewards.clip import clip_model
    from rtdmd.rewards.preprocessing import ImageTransform
    from rtdmd.rewards.weights import file_hashes, file_in, model_hashes, read_weights

    folder = Path(params.model)
    base = Path(params.base)
    weights = file_in(folder, f"{KEY}: model", *FILES)
    key = f"{KEY}: model: {weights}"
    head = predictor(read_weights(weights, f"{KEY}: model"), key)
    clip = clip_model(base, f"{KEY}: base", "openai/clip-vit-large-patch14", device)
    width = head[0].in_features
    expected = clip.config.projection_dim
    if width != expected:
        raise UserError(f"{key}: predicts from {width} numbers, but {base} embeds images in {expected}")
    files = file_hashes([weights]) | model_hashes(base, f"{KEY}: base", "base/")
    transform = ImageTransform.from_folder(base, f"{KEY}: base")
    return Aesthetic(clip, head.to(device), transform, files, device, params.pixels)


def predictor(tensors: Mapping[str, Tensor], key: str) -> nn.Sequential:
    """The linear layers of the published file, frozen, of the widths that it has; UserError for any other layout."""
    from torch import nn

    from rtdmd.rewards.weights import load_exactly

    names = {f"layers.{place}.weight": f"{i}.weight" for i, place in enumerate(LAYERS)}
    names |= {f"layers.{place}.bias": f"{i}.bias" for i, place in enumerate(LAYERS)}
    missing = sorted(names.keys() - tensors.keys())
    if missing:
        raise UserError(f"{key}: the weights are not this model's; missing: {', '.join(missing)}")
    shapes = [tensors[f"layers.{place}.weight"].shape for place in LAYERS]
    model = nn.Sequential(*(nn.Linear(wide, narrow, device="meta") for narrow, wide in shapes)).to_empty(device="cpu")
    load_exactly(model, {names.get(name, name): value for name, value in tensors.items()}, key)
    return model.requires_grad_(False).eval()


@dataclass
class Aesthetic:
    """`rtdmd.rewards.protocol.Reward`."""

    model: Any
    head: nn.Module
    transform: Any
    files: Mapping[str, str]
    device: torch.device
    pixels: Pixels
    name: str = "aesthetic"
    differentiable: bool = True
    needs_metadata: bool = False
    range: tuple[float, float] = (-math.inf, math.inf)  # ratings are 1 to 10; a linear predictor is not bound to them

    def identity(self) -> dict[str, Any]:
        """There is no template, because the prompt is not read."""
        files = dict(self.files)
        pixels = self.pixels
        return {"name": self.name, "files": files, "template": None, "version": VERSION, "pixels": pixels}

    def to(self, device: torch.device) -> None:
        self.model.to(device)
        self.head.to(device)
        self.device = device

    def score(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Metadata]) -> Tensor:
        """About 1 to 10; gradients reach the images."""
        from rtdmd.rewards.clip import embed_images

        check_batch(images, prompts, metadata)
        embedded = embed_images(self.model, self.transform(as_read(self.name, images.to(self.device), self.pixels)))
        return checked(self.name, self.head(embedded)[:, 0])


def cost(params: AestheticParams, root: Path) -> Networks:
    """CLIP's towers, of which an image goes through one, and the predictor."""
    from torch import nn

    from rtdmd.rewards.published import AESTHETIC_HEAD, CLIP_VIT_L
    from rtdmd.rewards.without_weights import clip_cost, clip_towers

    clip = clip_cost(clip_towers(params, "base", root, CLIP_VIT_L))
    head = nn.Sequential(*(nn.Linear(wide, narrow) for wide, narrow in pairwise(AESTHETIC_HEAD)))
    return Networks([*clip.modules, head], lambda images: head(clip.score(images)))


REWARD = Registration(AestheticParams, load, cost)
