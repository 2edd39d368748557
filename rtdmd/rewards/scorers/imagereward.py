"""imagereward: ImageReward v1.0, the standardised score of BLIP with a reward head (arXiv 2304.05977). Differentiable.

As in the public code the prompt is cut to 35 tokens, starts with [CLS], and is padded to 35. The tokenizer knows BLIP's
[DEC] and [ENC] (they are in the published vocabulary), but the score reads the [CLS] position.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from rtdmd.common.errors import UserError
from rtdmd.common.model_files import check_tokenizer, read_config
from rtdmd.common.section import param
from rtdmd.rewards.protocol import Metadata, as_read, check_batch, checked
from rtdmd.rewards.registration import TEXTS, DifferentiableParams, Networks, Registration, Source, commit_of
from rtdmd.rewards.scorer import Scorer

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import BertTokenizer

    from rtdmd.rewards.preprocessing import ImageTransform

MAX_TOKENS = 35
# CLIP's
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)
TEMPLATE = "{prompt}"
VERSION = 1


class ImageRewardParams(DifferentiableParams):
    """People's rating of fit and quality."""

    name: Literal["imagereward"] = param("scorer", source="arXiv 2304.05977")
    model: str = param("a folder or Hub id with ImageReward.pt and med_config.json", source="zai-org/ImageReward")
    revision: str | None = commit_of("model")
    base: str = param("a BERT folder or Hub id (its tokenizer)", source="google-bert/bert-base-uncased")
    base_revision: str | None = commit_of("base")

    sources: ClassVar = {
        "model": Source("revision", ("ImageReward.pt", "med_config.json")),
        "base": Source("base_revision", TEXTS),
    }


def tokenizer_of(folder: Path, vocabulary_size: int) -> BertTokenizer:
    """BERT's tokenizer with BLIP's two tokens after its own; UserError where that is not the model's vocabulary."""
    from transformers import BertTokenizer

    from rtdmd.rewards.weights import made_from

    with made_from(folder, "rewards: imagereward: base", "tokenizer"):
        tokenizer = BertTokenizer.from_pretrained(folder, local_files_only=True)
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    tokenizer.add_tokens(["[ENC]"], special_tokens=True)
    if len(tokenizer) != vocabulary_size:
        raise UserError(
            f"rewards: imagereward: base: {folder} makes {len(tokenizer)} tokens where the model has "
            f"{vocabulary_size}; ImageReward reads google-bert/bert-base-uncased"
        )
    return tokenizer


def _transform(side: int) -> ImageTransform:
    from rtdmd.rewards.preprocessing import ImageTransform

    return ImageTransform(side, (side, side), IMAGE_MEAN, IMAGE_STD, "bicubic", half="even")


class ImageReward(Scorer):
    """The scorer of ``params.model`` (ImageReward.pt, med_config.json) and ``params.base`` (BERT's tokenizer)."""

    def __init__(self, params: ImageRewardParams, device: torch.device):
        """UserError where a file is missing or another model's."""
        from rtdmd.rewards.imagereward_model import build
        from rtdmd.rewards.weights import file_hashes, file_in, made_from, read_weights

        key = "rewards: imagereward"
        folder = Path(params.model)
        weights = file_in(folder, f"{key}: model", "ImageReward.pt", "ImageReward.safetensors")
        config = file_in(folder, f"{key}: model", "med_config.json")
        vocabulary = file_in(Path(params.base), f"{key}: base", "tokenizer.json", "vocab.txt")
        check_tokenizer(vocabulary, f"{key}: base")
        med_config = read_config(config, f"{key}: model")
        tensors = read_weights(weights, f"{key}: model")
        with made_from(config, f"{key}: model", "text model"):
            self.model = build(tensors, med_config, f"{key}: model: {weights}").to(device)
        self.tokenizer = tokenizer_of(vocabulary.parent, med_config["vocab_size"])
        self.transform = _transform(self.model.vision.config.image_size)
        self.pixels = params.pixels
        files = file_hashes([weights, config, vocabulary])
        about = {"files": files, "template": TEMPLATE, "version": VERSION, "pixels": params.pixels}
        super().__init__(params, device, [self.model], **about)

    def score(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Metadata]) -> Tensor:
        """About -2.5 to 2, mean 0 over ImageReward's own data; gradients reach the images."""
        check_batch(images, prompts, metadata)
        pixels = self.transform(as_read(self.name, images.to(self.device), self.pixels))
        tokens = self.tokenizer(
            [TEMPLATE.format(prompt=prompt) for prompt in prompts],
            padding="max_length",
            truncation=True,
            max_length=MAX_TOKENS,
            return_tensors="pt",
        ).to(self.device)
        return checked(self.name, self.model(pixels, tokens["input_ids"], tokens["attention_mask"]))


def cost(params: ImageRewardParams, root: Path) -> Networks:
    """BLIP with its reward head, at the published size, reading a text of the longest length."""
    import torch
    from transformers import BlipTextConfig, BlipVisionConfig

    from rtdmd.rewards.imagereward_model import ImageRewardModel
    from rtdmd.rewards.published import BLIP_HEAD, BLIP_TEXT, BLIP_VISION

    del params, root
    model = ImageRewardModel(BlipVisionConfig(**BLIP_VISION), BlipTextConfig(**BLIP_TEXT), BLIP_HEAD)
    transform = _transform(BLIP_VISION["image_size"])

    def score(images: Tensor) -> Tensor:
        tokens = torch.zeros(len(images), MAX_TOKENS, dtype=torch.long, device=images.device)
        found: Tensor = model(transform(images), tokens, None)
        return found

    return Networks([model], score)


REWARD = Registration(ImageRewardParams, ImageReward, cost)
