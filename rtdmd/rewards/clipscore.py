"""clipscore: cosine of a CLIP model's image and text embeddings (method page, rewards; public code: logit / 100).

Works with any transformers CLIPModel folder: openai's ViT-L/14 or the embedded world's own. Differentiable.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rtdmd.errors import UserError
from rtdmd.files import read_json, sha256_file
from rtdmd.rewards.preprocess import ImageTransform
from rtdmd.rewards.protocol import Metadata, check_batch, checked
from rtdmd.torch_setup import quiet_imports, quiet_loading

with quiet_imports():
    from transformers import CLIPModel, CLIPTokenizer

if TYPE_CHECKING:
    from rtdmd.config import RewardParams

TEMPLATE = "{prompt}"
VERSION = 1


def load(params: RewardParams, device: torch.device) -> ClipScore:
    """The scorer of ``params.model``, a folder. UserError where it is missing or holds another kind of model."""
    folder = Path(params.model or "")
    config = folder / "config.json"
    if params.model is None or not config.is_file():
        hint = "fetch one with `hf download openai/clip-vit-large-patch14 --local-dir <folder>`"
        raise UserError(f"rewards: clipscore: model: {params.model} is not a CLIP model folder; {hint}")
    kind = read_json(config)["model_type"]
    if kind != "clip":
        raise UserError(f"rewards: clipscore: model: {params.model} holds a {kind!r} model, not a 'clip' one")
    return ClipScore(folder, device)


def _load_model(folder: Path, device: torch.device) -> Any:
    """The folder's CLIPModel, frozen, in float32."""
    with quiet_loading():
        model: Any = CLIPModel.from_pretrained(folder, local_files_only=True, use_safetensors=True, dtype=torch.float32)
    return model.to(device).requires_grad_(False).eval()


class ClipScore:
    """`rtdmd.rewards.protocol.Reward`. Text embeddings are kept: each prompt is embedded once, alone, so that a score
    depends neither on its batch nor on what was scored before."""

    name = "clipscore"
    differentiable = True
    needs_metadata = False
    range = (-1.0, 1.0)

    def __init__(self, folder: Path, device: torch.device):
        self.model = _load_model(folder, device)
        self.tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        self.transform = ImageTransform.from_folder(folder)
        self.device = device
        self._texts: dict[str, Tensor] = {}
        files = sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".json", ".txt"))
        self._files = {path.name: sha256_file(path) for path in files}

    def identity(self) -> dict[str, Any]:
        """See the protocol; ``files`` are the sha256 of weights, tokenizer and preprocessing."""
        return {"name": self.name, "files": self._files, "template": TEMPLATE, "version": VERSION}

    def score(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Metadata]) -> Tensor:
        """See the protocol: cosine in [-1, 1]; gradients reach the images."""
        check_batch(images, prompts, metadata)
        pixels = self.transform(images.to(self.device, torch.float32))
        embedded = F.normalize(self.model.get_image_features(pixel_values=pixels).pooler_output, dim=-1)
        texts = torch.stack([self._text(prompt) for prompt in prompts])
        return checked(self.name, (embedded * texts).sum(-1))

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
