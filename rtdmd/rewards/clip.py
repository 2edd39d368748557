"""What the scorers on CLIP share: two towers, a tokenizer and an image transform; a score is a scaled cosine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
        texts = torch.stack([self._text(prompt) for prompt in prompts])
        pixels = self.transform(images.to(self.device, torch.float32))
        cosine = (embed_images(self.model, pixels) * texts).sum(-1)
        return checked(self.name, cosine if self.scaled is None else self.scaled(cosine))

    @torch.no_grad()
    def _text(self, prompt: str) -> Tensor:
        """Unit text embedding (D,) of one prompt, cut to the model's longest text."""
        if prompt not in self._texts:
            length = self.model.config.text_config.max_position_embeddings
            tokens = self.tokenizer(
                TEMPLATE.format(prompt=prompt),
                padding="max_length",
                max_length=length,
                truncation=True,
                return_tensors="pt",
            ).to(self.device)
            features = self.model.get_text_features(**tokens).pooler_output
            self._texts[prompt] = F.normalize(features, dim=-1)[0]
        return self._texts[prompt]
