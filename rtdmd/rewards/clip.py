"""What the scorers on CLIP share: two towers, a tokenizer and an image processor; a score is a scaled cosine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rtdmd.common.errors import UserError
from rtdmd.common.model_files import check_tokenizer, read_config
from rtdmd.common.torch_setup import quiet_imports
from rtdmd.rewards.preprocessing import ImageTransform
from rtdmd.rewards.protocol import Metadata, as_read, asks_gradient, check_batch, checked
from rtdmd.rewards.registration import DifferentiableParams, Networks, RewardParams
from rtdmd.rewards.scorer import Scorer
from rtdmd.rewards.weights import assemble, file_in, made_from, read_model

with quiet_imports():
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

TEMPLATE = "{prompt}"
# a transform's numbers change no shape
MEAN = (0.5,) * 3
STD = (0.25,) * 3
COUNTERS = ("text_model.embeddings.position_ids", "vision_model.embeddings.position_ids")
"""0, 1, 2, ...: older files carry them, the model makes its own."""


def clip_config(folder: Path, key: str, repository: str, activation: str | None = None) -> CLIPConfig:
    """config.json of a CLIPModel folder. UserError where it is missing, of another kind or of another activation.

    key: how a message names the setting. repository: where such a folder can be had. activation: the one that the
    weights need, where they do not say so.
    """
    path = folder / "config.json"
    if not path.is_file():
        hint = f"fetch one with `hf download {repository} --local-dir <folder>`"
        raise UserError(f"{key}: {folder} is not a CLIP model folder; {hint}")
    kind = read_config(path, key).get("model_type")
    if kind != "clip":
        raise UserError(f"{key}: {folder} holds a {kind!r} model, not a 'clip' one; {repository} is one")
    with made_from(path, key, "CLIP configuration"):
        config = CLIPConfig.from_pretrained(folder, local_files_only=True)
    found = {config.text_config.hidden_act, config.vision_config.hidden_act}
    if activation is not None and found != {activation}:
        raise UserError(
            f"{key}: {path} has hidden_act {sorted(found)}, but these weights need {activation!r}; take {repository}"
        )
    return config


def clip_model(folder: Path, key: str, repository: str, device: torch.device) -> Any:
    """The folder's CLIPModel with every key consumed, frozen, in float32. UserError as in `clip_config`."""
    config = clip_config(folder, key, repository)
    return assemble(CLIPModel, config, read_model(folder, key), f"{key}: {folder}", COUNTERS).to(device)


def load_tokenizer(folder: Path, key: str) -> CLIPTokenizer:
    """The folder's CLIPTokenizer; UserError where it has none."""
    path = file_in(folder, key, "tokenizer.json", "vocab.json")
    check_tokenizer(path, key)
    with made_from(path, key, "tokenizer"):
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def embed_texts(model: Any, tokenizer: Any, texts: Sequence[str]) -> Tensor:
    """Unit text embeddings (T, D) by a CLIPModel, without gradient; what is longer than it reads is cut."""
    length = model.config.text_config.max_position_embeddings
    options = {"padding": "max_length", "max_length": length, "truncation": True, "return_tensors": "pt"}
    with torch.no_grad():
        tokens = tokenizer(list(texts), **options).to(model.device)
        return F.normalize(model.get_text_features(**tokens).pooler_output, dim=-1)


def embed_images(model: Any, pixels: Tensor) -> Tensor:
    """Unit image embeddings (B, D) of a CLIPModel's pixel values (B, 3, h, w); gradients pass."""
    return F.normalize(model.get_image_features(pixel_values=pixels).pooler_output, dim=-1)


class ClipReward(Scorer):
    """A scaled cosine of image and text embedding; gradients reach the images.

    transform: images (B, 3, H, W) in [0, 1], or bytes, to pixel values; backprop: the same where a gradient is asked
    for, if that is another one. scaled: cosines (B,) to scores (B,); None where the cosine is the score. Text
    embeddings are kept: each prompt is embedded once, alone, so that a score depends neither on its batch nor on what
    was scored before.
    """

    range = (-1.0, 1.0)
    backprop: Callable[[Tensor], Tensor] | None = None
    scaled: Callable[[Tensor], Tensor] | None = None

    def __init__(
        self,
        params: DifferentiableParams,
        device: torch.device,
        model: Any,
        tokenizer: Any,
        transform: Callable[[Tensor], Tensor],
        **about: Any,
    ):
        super().__init__(params, device, [model], template=TEMPLATE, pixels=params.pixels, **about)
        self.model = model
        self.tokenizer = tokenizer
        self.transform = transform
        self.pixels = params.pixels
        self._texts: dict[str, Tensor] = {}

    def to(self, device: torch.device) -> None:
        super().to(device)
        self._texts = {prompt: text.to(device) for prompt, text in self._texts.items()}

    def score(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Metadata]) -> Tensor:
        """Gradients reach the images."""
        check_batch(images, prompts, metadata)
        for prompt in prompts:
            if prompt not in self._texts:
                self._texts[prompt] = embed_texts(self.model, self.tokenizer, [TEMPLATE.format(prompt=prompt)])[0]
        texts = torch.stack([self._texts[prompt] for prompt in prompts])
        images = images.to(self.device)
        transform = self.backprop if self.backprop is not None and asks_gradient(images) else self.transform
        pixels = transform(as_read(self.name, images, self.pixels))
        cosine = (embed_images(self.model, pixels) * texts).sum(-1)
        return checked(self.name, cosine if self.scaled is None else self.scaled(cosine))


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
