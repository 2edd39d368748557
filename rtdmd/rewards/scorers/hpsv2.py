"""hpsv2: HPS v2.1, a CLIP ViT-H/14 trained on people's rankings of pictures (arXiv 2306.09341). Differentiable.

The published file has open_clip's names; they are mapped to transformers' CLIPModel, key by key. Score: the cosine
(public package: the same, in mixed precision; ours is float32). Pictures that are not square are padded with black.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from rtdmd.common.section import param
from rtdmd.rewards.registration import TEXTS, DifferentiableParams, Networks, Registration, Source, commit_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from rtdmd.rewards.clip import ClipReward

KEY = "rewards: hpsv2"
VERSION = 2  # raise it when the score of any image changes; 2: prompts are cleaned
FILES = ("HPS_v2.1_compressed.pt", "HPS_v2.1.safetensors")

_TOP = {
    "logit_scale": "logit_scale",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "text_projection": "text_projection.weight",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.proj": "visual_projection.weight",
}
_NORMS = {
    "ln_final": "text_model.final_layer_norm",
    "visual.ln_pre": "vision_model.pre_layrnorm",
    "visual.ln_post": "vision_model.post_layernorm",
}
_IN_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_TRANSPOSED = ("text_projection", "visual.proj")  # x @ P there, a linear layer's weight here
_BLOCK = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+?)[._](weight|bias)")


class HpsV2Params(DifferentiableParams):
    """People's ranking of pictures."""

    name: Literal["hpsv2"] = param("scorer", source="arXiv 2306.09341")
    model: str = param("a folder or Hub id with HPS_v2.1_compressed.pt", source="xswu/HPSv2")
    revision: str | None = commit_of("model")
    base: str = param(
        "a CLIP ViT-H/14 folder or Hub id (its config, tokenizer and preprocessing)",
        source="laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
    )
    base_revision: str | None = commit_of("base")

    sources: ClassVar = {
        "model": Source("revision", ("HPS_v2.1_compressed.pt",)),
        "base": Source("base_revision", TEXTS),
    }


def load(params: HpsV2Params, device: torch.device) -> ClipReward:
    """The scorer of ``params.model`` (the published file) and ``params.base`` (config, tokenizer, preprocessing).

    Raises UserError where a file is missing or a key of the weights is missing or unexpected.
    """
    from rtdmd.common.torch_setup import quiet_imports
    from rtdmd.rewards.clip import ClipReward, clip_config, load_tokenizer
    from rtdmd.rewards.preprocessing import ImageTransform, Letterbox
    from rtdmd.rewards.weights import assemble, file_hashes, file_in, read_weights, text_hashes

    with quiet_imports():
        from transformers import CLIPModel

    folder = Path(params.model)
    base = Path(params.base)
    config = clip_config(base, f"{KEY}: base", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K", activation="gelu")
    weights = file_in(folder, f"{KEY}: model", *FILES)
    tensors = from_open_clip(read_weights(weights, f"{KEY}: model"))
    model = assemble(CLIPModel, config, tensors, f"{KEY}: model: {weights}").to(device)
    asked = ImageTransform.from_folder(base, f"{KEY}: base")
    transform = Letterbox(config.vision_config.image_size, asked.mean, asked.std)
    files = file_hashes([weights]) | text_hashes(base, "base/")
    tokenizer = load_tokenizer(base, f"{KEY}: base")

    def tokenize(prompts: list[str], **options: Any) -> Any:
        return tokenizer([cleaned(prompt) for prompt in prompts], **options)

    return ClipReward(params, device, model, tokenize, transform, files=files, version=VERSION)


def cleaned(prompt: str) -> str:
    """A prompt as the published package's tokenizer (open_clip) reads it: wrongly decoded characters and typographic
    quotes mended, HTML's names of characters replaced, blanks joined, in lower case."""
    import ftfy

    text = html.unescape(html.unescape(ftfy.fix_text(prompt)))
    return " ".join(text.split()).lower()


def cost(params: HpsV2Params, root: Path) -> Networks:
    """Both towers; an image goes through one."""
    from rtdmd.rewards.clip import MEAN, STD, clip_cost, clip_towers
    from rtdmd.rewards.preprocessing import Letterbox
    from rtdmd.rewards.published import CLIP_VIT_H

    model = clip_towers(params, "base", root, CLIP_VIT_H)
    return clip_cost(model, Letterbox(model.config.vision_config.image_size, MEAN, STD))


def from_open_clip(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """open_clip's CLIP weights under the names and shapes of transformers' CLIPModel; what is unknown keeps its name,
    so that loading reports it."""
    mapped: dict[str, Tensor] = {}
    for name, value in tensors.items():
        block = _BLOCK.fullmatch(name)
        if block is not None and block[3] == "attn.in_proj":
            for part, piece in zip("qkv", value.chunk(3), strict=True):
                mapped[f"{_layer(block)}.self_attn.{part}_proj.{block[4]}"] = piece
        elif block is not None and block[3] in _IN_BLOCK:
            mapped[f"{_layer(block)}.{_IN_BLOCK[block[3]]}.{block[4]}"] = value
        elif name in _TOP:
            mapped[_TOP[name]] = value.T if name in _TRANSPOSED else value
        else:
            owner, _, kind = name.rpartition(".")
            mapped[f"{_NORMS[owner]}.{kind}" if owner in _NORMS else name] = value
    return mapped


def _layer(block: re.Match[str]) -> str:
    return f"{'vision_model' if block[1] else 'text_model'}.encoder.layers.{block[2]}"


REWARD = Registration(HpsV2Params, load, cost)
