"""How scorers on vision transformers bring images to their model's size and normalise them, in torch, with gradients.

Bicubic or bilinear resize with antialiasing, centre crop or black bars, normalisation. Resizing is linear in the image,
so it is done as two matrix products with weights that torch's own antialiased ``interpolate`` gives for the identity:
the same numbers, and deterministic gradients on every device. Bytes, which have no gradient, are resized by PIL.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from rtdmd.common.errors import UserError
from rtdmd.common.model_files import absent, read_config
from rtdmd.rewards.weights import made_from

ROUNDING = 1e-5  # of a resized pixel: above float32's (5e-7), far below half a step of 8-bit pixels (2e-3)
FILTERS = {2: "bilinear", 3: "bicubic"}  # PIL's codes, as processor configs write them
CODES = {mode: Image.Resampling(code) for code, mode in FILTERS.items()}


@lru_cache(maxsize=32)
def resize_weights(n_in: int, n_out: int, mode: str) -> Tensor:
    """(n_out, n_in) float32 weights of an antialiased 1-D resize; mode ``bilinear`` or ``bicubic`` (PIL's a = -0.5)."""
    eye = torch.eye(n_in)[None, None]
    return F.interpolate(eye, size=(n_out, n_in), mode=mode, antialias=True, align_corners=False)[0, 0]


def resize(images: Tensor, height: int, width: int, mode: str = "bicubic") -> Tensor:
    """Images (B, C, H, W) resized to (B, C, height, width). Bicubic overshoot is kept."""
    rows = resize_weights(images.shape[-2], height, mode).to(images)
    columns = resize_weights(images.shape[-1], width, mode).to(images)
    return rows @ images @ columns.T


def resize_bytes(images: Tensor, height: int, width: int, mode: str) -> Tensor:
    """Bytes (B, 3, H, W) resized to (B, 3, height, width) by PIL, which rounds to bytes after each direction."""
    pictures = [Image.fromarray(pixels) for pixels in images.permute(0, 2, 3, 1).cpu().numpy()]
    resized = np.stack([np.asarray(picture.resize((width, height), CODES[mode])) for picture in pictures])
    return torch.from_numpy(resized).permute(0, 3, 1, 2).to(images.device)


def unit_floats(images: Tensor) -> Tensor:
    """Images in [0, 1]: bytes divided by 255, floats as they are."""
    return images.float() / 255 if images.dtype == torch.uint8 else images


def cut_overshoot(images: Tensor) -> Tensor:
    """Images clamped to [0, 1]. What is outside by rounding alone keeps its gradient.

    The weights of a resize sum up to 1 within float32's rounding, so that a third of a white image comes out above 1 by
    up to 5e-7. Plain clamping would take its gradient away.
    """
    clamped: Tensor = _CutOvershoot.apply(images)
    return clamped


class _CutOvershoot(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor) -> Tensor:
        ctx.save_for_backward(images)
        return images.clamp(0, 1)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Tensor:
        (images,) = ctx.saved_tensors
        inside = (images >= -ROUNDING) & (images <= 1 + ROUNDING)
        return upstream[0] * inside


@dataclass(frozen=True)
class ImageTransform:
    """What a model's processor config asks for. size: shortest edge, or (height, width); None where a step is off.

    half: where a centre crop of an odd rest begins: transformers rounds half a pixel down, torchvision to the even one.
    floats_first: bytes are resized as floats rather than as bytes.
    """

    size: int | tuple[int, int] | None
    crop: tuple[int, int] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    mode: str
    half: Literal["down", "even"] = "down"
    floats_first: bool = False

    @staticmethod
    def from_folder(folder: Path, key: str) -> ImageTransform:
        """Read preprocessor_config.json, or transformers 5's processor_config.json; UserError where neither will do.

        key: how the message names the setting, for example ``rewards: clipscore: model``.
        """
        for name in ("preprocessor_config.json", "processor_config.json"):
            if (folder / name).is_file():
                config = read_config(folder / name, key)
                with made_from(folder / name, key, "image processor"):
                    return _from_config(config.get("image_processor", config), f"{key}: {folder / name}")
        raise UserError(
            f"{key}: {folder} has no preprocessor_config.json, which says how the model wants its images;"
            f" {absent(folder)}"
        )

    def __call__(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1], or bytes, as the model's pixel values (B, 3, h, w)."""
        images = unit_floats(images) if self.floats_first else images
        height, width = images.shape[-2:]
        if isinstance(self.size, tuple):
            height, width = self.size
        elif self.size is not None:  # the longer side is truncated to whole pixels, as in transformers
            short = min(height, width)
            height = self.size * height // short
            width = self.size * width // short
        if (height, width) != tuple(images.shape[-2:]):
            if images.dtype == torch.uint8:
                images = resize_bytes(images, height, width, self.mode)
            else:
                images = cut_overshoot(resize(images, height, width, self.mode))  # bytes cannot overshoot
        if self.crop is not None:
            rest = (height - self.crop[0], width - self.crop[1])
            if min(rest) < 0:
                raise ValueError(f"cannot crop {self.crop[0]}x{self.crop[1]} from {(height, width)}")
            top, left = (side // 2 if self.half == "down" else round(side / 2) for side in rest)
            images = images[..., top : top + self.crop[0], left : left + self.crop[1]]
        images = unit_floats(images)
        mean = torch.tensor(self.mean, device=images.device).view(-1, 1, 1)
        std = torch.tensor(self.std, device=images.device).view(-1, 1, 1)
        return (images - mean) / std


def bilinear(transform: ImageTransform) -> ImageTransform:
    """The same sizes by torchvision's Resize and CenterCrop, which the public code puts in the processor's place:
    bilinear with antialiasing on floats, half a pixel of a crop to the even one."""
    return replace(transform, mode="bilinear", half="even", floats_first=True)


@dataclass(frozen=True)
class Letterbox:
    """HPS v2's transform: the longer side resized to ``size``, black above and below or left and right of the rest.

    It resizes floats, so bicubic overshoot stays (ImageTransform's processors resize bytes, which cannot overshoot).
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1], or bytes, as pixel values (B, 3, size, size)."""
        images = unit_floats(images)
        scale = self.size / max(images.shape[-2:])
        height, width = (round(side * scale) for side in images.shape[-2:])
        if (height, width) != tuple(images.shape[-2:]):
            images = resize(images, height, width)
        top = (self.size - height) // 2
        left = (self.size - width) // 2
        images = F.pad(images, (left, self.size - width - left, top, self.size - height - top))
        mean = torch.tensor(self.mean, device=images.device).view(-1, 1, 1)
        std = torch.tensor(self.std, device=images.device).view(-1, 1, 1)
        return (images - mean) / std


def _from_config(config: dict[str, Any], place: str) -> ImageTransform:
    """UserError where the config asks for a filter that we do not have."""
    if config.get("resample", 3) not in FILTERS:
        raise UserError(f"{place}: resample {config['resample']} is not supported; 2 (bilinear) or 3 (bicubic)")
    crop = _size(config["crop_size"]) if config["do_center_crop"] else None
    return ImageTransform(
        size=_size(config["size"]) if config["do_resize"] else None,
        crop=(crop, crop) if isinstance(crop, int) else crop,
        mean=tuple(config["image_mean"]) if config["do_normalize"] else (0.0, 0.0, 0.0),
        std=tuple(config["image_std"]) if config["do_normalize"] else (1.0, 1.0, 1.0),
        mode=FILTERS[config.get("resample", 3)],
    )


def _size(value: int | dict[str, int]) -> int | tuple[int, int]:
    """Configs write a size as n, {"shortest_edge": n} or {"height": h, "width": w}."""
    if isinstance(value, int):
        return value
    return value["shortest_edge"] if "shortest_edge" in value else (value["height"], value["width"])
