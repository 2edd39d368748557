"""What the scorers on CLIP share: two towers, a tokenizer and an image processor; a score is a scaled cosine.

The processor is in torch alone, so that gradients pass: bicubic resize with antialiasing, centre crop, normalisation.
Resizing is linear in the image, so it is done as two matrix products with weights that torch's own antialiased
``interpolate`` gives for the identity: the same numbers, and deterministic gradients on every device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from rtdmd.common.errors import UserError
from rtdmd.common.files import read_json
from rtdmd.common.torch_setup import quiet_imports
from rtdmd.rewards.protocol import Metadata, check_batch, checked
from rtdmd.rewards.weights import assemble, file_hashes, file_in, read_weights

with quiet_imports():
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

TEMPLATE = "{prompt}"
COUNTERS = ("text_model.embeddings.position_ids", "vision_model.embeddings.position_ids")
"""0, 1, 2, ...: older files carry them, the model makes its own."""
ROUNDING = 1e-5  # of a resized pixel: above float32's (5e-7), far below half a step of 8-bit pixels (2e-3)
FILTERS = {2: "bilinear", 3: "bicubic"}  # PIL's codes, as processor configs write them


def clip_config(folder: Path, key: str, repository: str, activation: str | None = None) -> CLIPConfig:
    """config.json of a CLIPModel folder. UserError where it is missing, of another kind or of another activation.

    key: how a message names the setting. repository: where such a folder can be had. activation: the one that the
    weights need, where they do not say so.
    """
    path = folder / "config.json"
    if not path.is_file():
        hint = f"fetch one with `hf download {repository} --local-dir <folder>`"
        raise UserError(f"{key}: {folder} is not a CLIP model folder; {hint}")
    kind = read_json(path).get("model_type")
    if kind != "clip":
        raise UserError(f"{key}: {folder} holds a {kind!r} model, not a 'clip' one")
    config = CLIPConfig.from_pretrained(folder, local_files_only=True)
    found = {config.text_config.hidden_act, config.vision_config.hidden_act}
    if activation is not None and found != {activation}:
        raise UserError(f"{key}: {path} has hidden_act {sorted(found)}, but these weights need {activation!r}")
    return config


def clip_model(folder: Path, key: str, repository: str, device: torch.device) -> Any:
    """The folder's CLIPModel with every key consumed, frozen, in float32. UserError as in `clip_config`."""
    config = clip_config(folder, key, repository)
    tensors = read_weights(file_in(folder, key, "model.safetensors", "pytorch_model.bin"), key)
    return assemble(CLIPModel, config, tensors, key, COUNTERS).to(device)


def load_tokenizer(folder: Path, key: str) -> CLIPTokenizer:
    """The folder's CLIPTokenizer; UserError where it has none."""
    file_in(folder, key, "tokenizer.json", "vocab.json")
    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def embed_images(model: Any, pixels: Tensor) -> Tensor:
    """Unit image embeddings (B, D) of a CLIPModel's pixel values (B, 3, h, w); gradients pass."""
    return F.normalize(model.get_image_features(pixel_values=pixels).pooler_output, dim=-1)


def folder_hashes(folder: Path, *suffixes: str) -> dict[str, str]:
    """sha256 by name of the folder's files with one of these suffixes."""
    return file_hashes(*(path for path in folder.iterdir() if path.suffix in suffixes))


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
    """

    size: int | tuple[int, int] | None
    crop: tuple[int, int] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    mode: str
    half: Literal["down", "even"] = "down"

    @staticmethod
    def from_folder(folder: Path) -> ImageTransform:
        """Read preprocessor_config.json, or transformers 5's processor_config.json; UserError where neither will do."""
        plain, nested = folder / "preprocessor_config.json", folder / "processor_config.json"
        if plain.is_file():
            return _from_config(read_json(plain), plain)
        if nested.is_file():
            return _from_config(read_json(nested)["image_processor"], nested)
        raise UserError(f"{folder} has no preprocessor_config.json, which says how the model wants its images")

    def __call__(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] as the model's pixel values (B, 3, h, w)."""
        height, width = images.shape[-2:]
        if isinstance(self.size, tuple):
            height, width = self.size
        elif self.size is not None:  # the longer side is truncated to whole pixels, as in transformers
            short = min(height, width)
            height = self.size * height // short
            width = self.size * width // short
        if (height, width) != tuple(images.shape[-2:]):
            images = cut_overshoot(resize(images, height, width, self.mode))  # 8-bit images cannot overshoot
        if self.crop is not None:
            rest = (height - self.crop[0], width - self.crop[1])
            if min(rest) < 0:
                raise ValueError(f"cannot crop {self.crop[0]}x{self.crop[1]} from {(height, width)}")
            top, left = (side // 2 if self.half == "down" else round(side / 2) for side in rest)
            images = images[..., top : top + self.crop[0], left : left + self.crop[1]]
        mean = torch.tensor(self.mean, device=images.device).view(-1, 1, 1)
        std = torch.tensor(self.std, device=images.device).view(-1, 1, 1)
        return (images - mean) / std


@dataclass(frozen=True)
class Letterbox:
    """HPS v2's transform: the longer side resized to ``size``, black above and below or left and right of the rest.

    It resizes floats, so bicubic overshoot stays (ImageTransform's processors resize bytes, which cannot overshoot).
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] as pixel values (B, 3, size, size)."""
        scale = self.size / max(images.shape[-2:])
        height, width = (round(side * scale) for side in images.shape[-2:])
        if (height, width) != tuple(images.shape[-2:]):
            images = resize(images, height, width)
        top, left = (self.size - height) // 2, (self.size - width) // 2
        images = F.pad(images, (left, self.size - width - left, top, self.size - height - top))
        mean = torch.tensor(self.mean, device=images.device).view(-1, 1, 1)
        std = torch.tensor(self.std, device=images.device).view(-1, 1, 1)
        return (images - mean) / std


def _from_config(config: dict[str, Any], path: Path) -> ImageTransform:
    """UserError where the config asks for a filter that we do not have."""
    if config.get("resample", 3) not in FILTERS:
        raise UserError(f"{path}: resample {config['resample']} is not supported; 2 (bilinear) or 3 (bicubic)")
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


@dataclass
class ClipReward:
    """`rtdmd.rewards.protocol.Reward`: a scaled cosine of image and text embedding; gradients reach the images.

    transform: images (B, 3, H, W) in [0, 1] to pixel values. files: sha256 by name, for `identity`. scaled: cosines
    (B,) to scores (B,); None where the cosine is the score. Text embeddings are kept: each prompt is embedded once,
    alone, so that a score depends neither on its batch nor on what was scored before.
    """

    name: str
    model: Any
    tokenizer: Any
    transform: Any
    files: Mapping[str, str]
    device: torch.device
    range: tuple[float, float] = (-1.0, 1.0)
    scaled: Callable[[Tensor], Tensor] | None = None
    version: int = 1  # raise it when the score of any image changes
    differentiable: bool = True
    needs_metadata: bool = False
    _texts: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def identity(self) -> dict[str, Any]:
        """See the protocol; ``files`` are the sha256 of weights, tokenizer and preprocessing."""
        return {"name": self.name, "files": dict(self.files), "template": TEMPLATE, "version": self.version}

    def to(self, device: torch.device) -> None:
        """See the protocol."""
        self.model.to(device)
        self._texts = {prompt: text.to(device) for prompt, text in self._texts.items()}
        self.device = device

    def score(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Metadata]) -> Tensor:
        """See the protocol; gradients reach the images."""
        check_batch(images, prompts, metadata)
        length = self.model.config.text_config.max_position_embeddings  # a longer text is cut
        for prompt in prompts:
            if prompt not in self._texts:
                tokens = self.tokenizer(
                    TEMPLATE.format(prompt=prompt),
                    padding="max_length",
                    max_length=length,
                    truncation=True,
                    return_tensors="pt",
                ).to(self.device)
                with torch.no_grad():
                    features = self.model.get_text_features(**tokens).pooler_output
                self._texts[prompt] = F.normalize(features, dim=-1)[0]
        texts = torch.stack([self._texts[prompt] for prompt in prompts])
        pixels = self.transform(images.to(self.device, torch.float32))
        cosine = (embed_images(self.model, pixels) * texts).sum(-1)
        return checked(self.name, cosine if self.scaled is None else self.scaled(cosine))
