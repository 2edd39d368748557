"""Networks of scorers on CLIP without their weights, for `rtdmd plan`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from rtdmd.common.errors import UserError
from rtdmd.common.model_files import read_config
from rtdmd.common.torch_setup import quiet_imports
from rtdmd.rewards.clip import embed_images
from rtdmd.rewards.preprocessing import ImageTransform
from rtdmd.rewards.registration import Networks, RewardParams
from rtdmd.rewards.weights import made_from

with quiet_imports():
    from transformers import CLIPConfig, CLIPModel

# a transform's numbers change no shape
MEAN = (0.5,) * 3
STD = (0.25,) * 3


def clip_towers(params: RewardParams, source: str, root: Path, published: dict[str, Any]) -> Any:
    """A CLIPModel of the config.json in the entry's folder ``source``; for a Hub id, or none, of the ``published`` one.

    Raises UserError where the folder has no config.json.
    """
    folder = getattr(params, source)
    if folder is not None and not params.is_hub_id(source):
        path = root / folder / "config.json"
        if not path.is_file():
            raise UserError(f"rewards: {params.name}: {source}: {path} does not exist; correct the path")
        key = f"rewards: {params.name}: {source}"
        with made_from(path, key, "CLIP configuration"):
            return CLIPModel(CLIPConfig(**read_config(path, key)))
    return CLIPModel(CLIPConfig(**published))


def clip_cost(model: Any, transform: Callable[[Tensor], Tensor] | None = None) -> Networks:
    """What an image's embedding costs; transform: to pixel values, by default a resize to the model's square."""
    side = model.config.vision_config.image_size
    pixels = transform or ImageTransform(side, (side, side), MEAN, STD, "bicubic")
    return Networks([model], lambda images: embed_images(model, pixels(images)))
