"""ImageReward's network (BLIP ViT-L, BERT with cross-attention, linear head) on transformers' modules.

The published weights use BLIP's own names; RENAMES turns them into those of the modules below, one to one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from rtdmd.common.errors import UserError
from rtdmd.common.torch_setup import quiet_imports
from rtdmd.rewards.weights import linear_layers, linear_sizes, load_exactly, renamed

with quiet_imports():
    from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

MEAN = 0.16717362830052426
STD = 1.0333394966054072
"""Of the raw scores over ImageReward's data: the published score is standardised with them (image-reward 1.5)."""
# of BLIP's ViT-L; neither is seen in the weights
VISION_HEADS = 16
VISION_EPS = 1e-6

_BLOCK = r"blip\.visual_encoder\.blocks\.(\d+)\."
RENAMES = (
    (r"blip\.visual_encoder\.cls_token$", "vision.embeddings.class_embedding"),
    (r"blip\.visual_encoder\.pos_embed$", "vision.embeddings.position_embedding"),
    (r"blip\.visual_encoder\.patch_embed\.proj\.", "vision.embeddings.patch_embedding."),
    (r"blip\.visual_encoder\.norm\.", "vision.post_layernorm."),
    (_BLOCK + r"norm([12])\.", r"vision.encoder.layers.\1.layer_norm\2."),
    (_BLOCK + r"attn\.qkv\.", r"vision.encoder.layers.\1.self_attn.qkv."),
    (_BLOCK + r"attn\.proj\.", r"vision.encoder.layers.\1.self_attn.projection."),
    (_BLOCK + r"mlp\.", r"vision.encoder.layers.\1.mlp."),
    (r"blip\.text_encoder\.", "text."),
    (r"mlp\.layers\.", "head."),
)
UNUSED = (
    "text.embeddings.position_ids",
    *(f"blip.{side}_proj.{kind}" for side in ("vision", "text") for kind in ("weight", "bias")),
)
"""In the file, but no part of the score: a position counter, and the projections of BLIP's contrastive loss."""


class ImageRewardModel(nn.Module):
    """Image and text to one standardised score."""

    def __init__(self, vision: BlipVisionConfig, text: BlipTextConfig, head: Mapping[int, tuple[int, int]]):
        """head: place in the published head -> (inputs, outputs) of the linear layer there."""
        super().__init__()
        self.vision = BlipVisionModel(vision)
        self.text = BlipTextModel(text, add_pooling_layer=False)
        self.head = linear_layers(head)

    def forward(self, pixels: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Scores (B,) of pixel values (B, 3, H, W) and tokens (B, L): the head reads the text's first position."""
        seen = self.vision(pixel_values=pixels).last_hidden_state  # (B, 1 + patches, D)
        read = self.text(input_ids=input_ids, attention_mask=attention_mask, encoder_hidden_states=seen)
        raw = self.head(read.last_hidden_state[:, 0])[:, 0]
        return (raw - MEAN) / STD


def build(published: Mapping[str, Tensor], med_config: Mapping[str, Any], key: str) -> ImageRewardModel:
    """The model of published weights (by BLIP's names) and of med_config.json, frozen, in float32.

    Raises UserError, with ``key`` in front, where tensors are missing, left over or of another shape.
    """
    tensors = renamed(published, RENAMES)
    vision = _vision_config(tensors, key)
    head = linear_sizes(tensors, "head")
    if not head:
        raise UserError(
            f"{key}: the weights have no mlp.layers, so they are not ImageReward's; take zai-org/ImageReward"
        )
    model = ImageRewardModel(vision, _text_config(med_config, vision.hidden_size, key), head)
    load_exactly(model, tensors, key, UNUSED)
    return model.requires_grad_(False).eval()


def _vision_config(tensors: Mapping[str, Tensor], key: str) -> BlipVisionConfig:
    """What the tensors' shapes say about the ViT."""
    try:
        patches = tensors["vision.embeddings.position_embedding"].shape[1] - 1
        patch = tensors["vision.embeddings.patch_embedding.weight"].shape[-1]
        inner, width = tensors["vision.encoder.layers.0.mlp.fc1.weight"].shape
    except KeyError as error:
        raise UserError(
            f"{key}: the weights lack {error.args[0]}, so they are not ImageReward's; take zai-org/ImageReward"
        ) from error
    blocks = {name.split(".")[3] for name in tensors if name.startswith("vision.encoder.layers.")}
    return BlipVisionConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=len(blocks),
        num_attention_heads=VISION_HEADS,
        image_size=math.isqrt(patches) * patch,
        patch_size=patch,
        layer_norm_eps=VISION_EPS,
        hidden_act="gelu",
    )


def _text_config(med_config: Mapping[str, Any], vision_width: int, key: str) -> BlipTextConfig:
    """BLIP's BERT, whose layers all attend to the image."""
    same = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "max_position_embeddings",
        "layer_norm_eps",
        "hidden_act",
        "pad_token_id",
    )
    if lacking := [name for name in same if name not in med_config]:
        raise UserError(f"{key}: med_config.json lacks {', '.join(lacking)}; fetch the file again")
    wanted = {name: med_config[name] for name in same}
    return BlipTextConfig(
        **wanted,
        encoder_hidden_size=vision_width,
        is_decoder=True,
        attn_implementation="eager",
        bos_token_id=None,  # nothing is generated
        sep_token_id=None,
    )
