"""The colour of a detected object: zero-shot classification of its cut-out by a CLIP model, as in GenEval.

Everything but the object is painted grey (#999), its box is cut out, and the nearest of ten colour prototypes wins. A
prototype is the normalised mean of three sentences' unit embeddings that name colour and class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from rtdmd.rewards.clip import clip_model, embed_images, embed_texts, load_tokenizer
from rtdmd.rewards.geneval_rules import COLOURS, Found
from rtdmd.rewards.preprocessing import ImageTransform
from rtdmd.rewards.protocol import to_bytes

TEMPLATES = ("a photo of a {colour} {name}", "a photo of a {colour}-colored {name}", "a photo of a {colour} object")
GREY = 153 / 255  # #999
REPOSITORY = "openai/clip-vit-large-patch14"
KEY = "rewards: geneval: colour_model"


class ColourNames:
    """Names the colours of objects; prototypes are made once for each class."""

    def __init__(self, folder: Path, device: torch.device):
        """folder: a CLIPModel folder. UserError where it is missing or holds another kind of model."""
        self.model = clip_model(folder, KEY, REPOSITORY, device)
        self.tokenizer = load_tokenizer(folder, KEY)
        self.transform = replace(ImageTransform.from_folder(folder, KEY), half="even")  # GenEval crops by torchvision
        self.device = device
        self._prototypes: dict[str, Tensor] = {}

    def to(self, device: torch.device) -> None:
        """Move the weights and the prototypes."""
        self.model.to(device)
        self._prototypes = {name: found.to(device) for name, found in self._prototypes.items()}
        self.device = device

    @torch.no_grad()
    def __call__(self, image: Tensor, masks: Tensor, name: str, things: Sequence[Found]) -> list[str]:
        """One of COLOURS for each thing of class ``name`` in an image (3, H, W) in [0, 1]; masks (n, H, W) bool."""
        prototypes = self.prototypes(name)
        cuts = [cut_out(image, masks[thing.index], thing).to(self.device) for thing in things]
        pixels = [self.transform(to_bytes("geneval", cut[None])) for cut in cuts]  # one by one: their sizes differ
        return [COLOURS[int((prototypes @ embed_images(self.model, one)[0]).argmax())] for one in pixels]

    def prototypes(self, name: str) -> Tensor:
        """Unit vectors (len(COLOURS), D) for things of class ``name``."""
        if name not in self._prototypes:
            sentences = [template.format(colour=colour, name=name) for colour in COLOURS for template in TEMPLATES]
            units = embed_texts(self.model, self.tokenizer, sentences)
            self._prototypes[name] = F.normalize(units.unflatten(0, (len(COLOURS), -1)).mean(1), dim=-1)
        return self._prototypes[name]


def cut_out(image: Tensor, mask: Tensor, thing: Found) -> Tensor:
    """The thing's box out of an image (3, H, W), grey where the mask (H, W) is off."""
    left, top, right, bottom = (int(side) for side in thing.box)
    return torch.where(mask, image, GREY)[:, top:bottom, left:right]
