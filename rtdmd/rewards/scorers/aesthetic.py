"""aesthetic: LAION's improved aesthetic predictor, five linear layers on CLIP ViT-L/14's image embedding.

Trained to predict people's ratings from 1 to 10; the prompt does not matter. Differentiable.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from rtdmd.common.errors import UserError
from rtdmd.common.section import param
from rtdmd.rewards.protocol import Metadata, as_read, check_batch, checked
from rtdmd.rewards.registration import DifferentiableParams, Networks, Registration, Source, commit_of
from rtdmd.rewards.scorer import Scorer

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

KEY = "rewards: aesthetic"
FILES = ("sac+logos+ava1-l14-linearMSE.pth", "*.pth", "*.safetensors")
LAYERS = (0, 2, 4, 6, 7)
"""Places of the linear layers in the published file; between them lies dropout, which does nothing here."""


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
    return Aesthetic(params, device, clip, head.to(device), transform, files)


def predictor(tensors: Mapping[str, Tensor], key: str) -> nn.Sequential:
    """The linear layers of the published file, frozen, of the widths that it has; UserError for any other layout."""
    import torch
    from torch import nn

    from rtdmd.rewards.weights import linear_layers, linear_sizes, load_exactly

    sizes = linear_sizes(tensors, "layers")
    missing = [f"layers.{place}.weight" for place in LAYERS if place not in sizes]
    if missing:
        raise UserError(f"{key}: the weights are not this model's; missing: {', '.join(missing)}")
    with torch.device("meta"):
        model = linear_layers({place: sizes[place] for place in LAYERS})
    model.to_empty(device="cpu")
    load_exactly(nn.ModuleDict({"layers": model}), tensors, key)
    return model.requires_grad_(False).eval()


class Aesthetic(Scorer):
    """Ratings are 1 to 10; a linear predictor is not bound to them. The prompt is not read."""

    def __init__(
        self,
        params: AestheticParams,
        device: torch.device,
        model: Any,
        head: nn.Module,
        transform: Any,
        files: Mapping[str, str],
    ):
        about = {"files": files, "template": None, "version": 1, "pixels": params.pixels}
        super().__init__(params, device, [model, head], **about)
        self.model = model
        self.head = head
        self.transform = transform
        self.pixels = params.pixels

    def score(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Metadata]) -> Tensor:
        """About 1 to 10; gradients reach the images."""
        from rtdmd.rewards.clip import embed_images

        check_batch(images, prompts, metadata)
        embedded = embed_images(self.model, self.transform(as_read(self.name, images.to(self.device), self.pixels)))
        return checked(self.name, self.head(embedded)[:, 0])


def cost(params: AestheticParams, root: Path) -> Networks:
    """CLIP's towers, of which an image goes through one, and the predictor."""
    from torch import nn

    from rtdmd.rewards.clip import clip_cost, clip_towers
    from rtdmd.rewards.published import AESTHETIC_HEAD, CLIP_VIT_L

    clip = clip_cost(clip_towers(params, "base", root, CLIP_VIT_L))
    head = nn.Sequential(*(nn.Linear(wide, narrow) for wide, narrow in pairwise(AESTHETIC_HEAD)))
    return Networks([*clip.modules, head], lambda images: head(clip.score(images)))


REWARD = Registration(AestheticParams, load, cost)
