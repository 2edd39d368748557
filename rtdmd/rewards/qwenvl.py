"""(image, question) pairs as a Qwen-VL model's inputs, with the model folder's own tokenizer, template and settings.

transformers' combined processors need torchvision for the videos that we do not have, so its parts are put together
here: the PIL image processor, the tokenizer, the chat template, and one placeholder for each image token.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from rtdmd.common.errors import UserError
from rtdmd.common.images import to_uint8
from rtdmd.common.model_files import absent, check_tokenizer, read_config
from rtdmd.common.torch_setup import quiet_imports
from rtdmd.rewards.weights import file_in, made_from

with quiet_imports():
    from transformers import Qwen2Tokenizer
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

IMAGE_TOKEN = "<|image_pad|>"
SETTINGS = (
    *("size", "min_pixels", "max_pixels", "patch_size", "temporal_patch_size", "merge_size"),
    *("image_mean", "image_std", "resample", "rescale_factor"),
)


class VisionChat:
    """Makes a batch of one-turn conversations: an image, then a text, then the answer's beginning."""

    def __init__(self, folder: Path, key: str, pixels: int | None = None):
        """folder: a Qwen2-VL's or Qwen3-VL's; key: how errors name the setting; pixels: the size that every image is
        scaled to, where the scorer and not the folder decides. UserError where a file or an entry is missing."""
        self.key = key
        self.files = _files(folder, key)
        settings = read_config(self.files["images"], key)
        settings = settings.get("image_processor", settings)  # processor_config.json of transformers 5 nests them
        kept = {name: settings[name] for name in SETTINGS if name in settings}
        if pixels is not None:
            kept |= {"size": {"shortest_edge": pixels, "longest_edge": pixels}}
            kept = {name: value for name, value in kept.items() if name not in ("min_pixels", "max_pixels")}
        with made_from(self.files["images"], key, "image processor"):
            self.image_processor = Qwen2VLImageProcessorPil(**kept)
        check_tokenizer(self.files["tokenizer"], key)
        with made_from(self.files["tokenizer"], key, "tokenizer"):
            self.tokenizer = Qwen2Tokenizer.from_pretrained(folder, local_files_only=True)
        self.template = self._template()
        self.image_token = self.tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)

    def __call__(self, images: Tensor, texts: Sequence[str]) -> dict[str, Tensor]:
        """Inputs of B images (B, 3, H, W) in [0, 1] with B texts, padded on the right, on the CPU.

        ``input_ids``, ``attention_mask``, ``mm_token_type_ids`` (1 at image tokens), each (B, L); ``pixel_values``
        (patches of all images, values of a patch); ``image_grid_thw`` (B, 3). UserError where a text brings a
        placeholder of its own.
        """
        pictures = list(to_uint8(images).transpose(0, 3, 1, 2))
        seen = self.image_processor(images=pictures, return_tensors="pt", input_data_format="channels_first")
        counts = seen["image_grid_thw"].prod(-1) // self.image_processor.merge_size**2
        full = [self._expanded(text, int(count)) for text, count in zip(texts, counts, strict=True)]
        tokens = self.tokenizer(full, padding=True, padding_side="right", return_tensors="pt")
        return {
            "input_ids": tokens["input_ids"],
            "attention_mask": tokens["attention_mask"],
            "mm_token_type_ids": (tokens["input_ids"] == self.image_token).int(),
            "pixel_values": seen["pixel_values"],
            "image_grid_thw": seen["image_grid_thw"],
        }

    def _expanded(self, text: str, count: int) -> str:
        """The conversation's text with ``count`` image tokens where its image is."""
        content = [{"type": "image"}, {"type": "text", "text": text}]
        rendered: str = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}],
            chat_template=self.template,
            tokenize=False,
            add_generation_prompt=True,
        )
        if rendered.count(IMAGE_TOKEN) != 1:
            raise UserError(
                f"{self.key}: one image is expected in each text, but {text!r} brings its own {IMAGE_TOKEN}"
            )
        return rendered.replace(IMAGE_TOKEN, IMAGE_TOKEN * count)

    def _template(self) -> str | None:
        """The folder's chat template; None where the tokenizer has it."""
        if "template" not in self.files:
            if self.tokenizer.chat_template is None:
                folder = self.files["images"].parent
                raise UserError(f"{self.key}: {folder} has no chat_template.json or .jinja; {absent(folder)}")
            return None
        text = read_config(self.files["template"], self.key).get("chat_template")
        if not isinstance(text, str):
            raise UserError(f"{self.key}: {self.files['template']} has no chat_template; take the owner's own file")
        return text


def _files(folder: Path, key: str) -> dict[str, Path]:
    """The files that decide the inputs, by what they hold."""
    files = {
        "images": file_in(folder, key, "preprocessor_config.json", "processor_config.json"),
        "tokenizer": file_in(folder, key, "tokenizer.json", "vocab.json"),
    }
    template = folder / "chat_template.json"
    optional = {"template": template, "tokenizer_config": folder / "tokenizer_config.json"}
    return files | {name: path for name, path in optional.items() if path.is_file()}


def require_kind(folder: Path, key: str, kind: str) -> Path:
    """The folder's config.json; UserError (``key`` names the setting) where there is none or of another model_type."""
    config = file_in(folder, key, "config.json")
    found = read_config(config, key).get("model_type")
    if found != kind:
        raise UserError(f"{key}: {folder} holds a {found!r} model, not a {kind!r} one; name another folder")
    return config


def last_positions(attention_mask: Tensor) -> Tensor:
    """(B,) position of each row's last token, of a mask (B, L) padded on the right."""
    return attention_mask.sum(-1) - 1


def to_device(inputs: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """The same inputs on ``device``."""
    return {name: value.to(device) for name, value in inputs.items()}
