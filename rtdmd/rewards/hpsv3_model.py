"""HPSv3's network: a Qwen2-VL body and a small head that gives mean and (log) spread of an image's preference score.

Two habits of the published package (hpsv3 1.0.0 with transformers 4.45) are part of what the weights were trained with
and are kept: image tokens count on like text (no three-dimensional positions), and in bfloat16 the rotary frequencies
are rounded with the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rtdmd.common.errors import UserError
from rtdmd.common.torch_setup import quiet_imports
from rtdmd.rewards.weights import linear_layers, linear_sizes, load_exactly, renamed

with quiet_imports():
    from transformers import AutoModel, Qwen2VLConfig
    from transformers.initialization import no_init_weights

RENAMES = ((r"visual\.", "body.visual."), (r"model\.", "body.language_model."), (r"rm_head\.", "head."))
UNUSED = ("lm_head.weight",)
"""In the file, but no part of the score: the base model's next-word layer."""
HEAD = (0, 3, 5)  # positions of its linear layers; ReLU follows all but the last


class HPSv3Model(nn.Module):
    """Images and texts to (mean, spread) of their score, read at the reward token."""

    def __init__(self, config: Qwen2VLConfig, head: Mapping[int, tuple[int, int]], reward_token: int):
        """head: place in the published head -> (inputs, outputs) of its linear layers; reward_token: its id."""
        super().__init__()
        body: Any = AutoModel.from_config(config, dtype=config.dtype)
        self.body = body.to(config.dtype)  # buffers too: see above
        self.head = linear_layers(head)
        for place in sorted(head)[:-1]:
            self.head[place + 1] = nn.ReLU()
        self.reward_token = reward_token

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """(B, 2) float32 of `rtdmd.rewards.qwenvl.VisionChat` inputs, each row with one reward token."""
        batch, length = inputs["input_ids"].shape
        positions = torch.arange(length, device=inputs["input_ids"].device).expand(3, batch, length)
        hidden = self.body(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            position_ids=positions,
            pixel_values=inputs["pixel_values"],
            image_grid_thw=inputs["image_grid_thw"],
            use_cache=False,
        ).last_hidden_state
        found: Tensor = self.head(hidden[inputs["input_ids"] == self.reward_token].float())  # (B, 2)
        return found


def build(published: Mapping[str, Tensor], config: Mapping[str, Any], reward_token: int, key: str) -> HPSv3Model:
    """The model of published weights (by the package's names) and of the base's config.json, frozen, on the CPU.

    The body computes in the configuration's dtype, the head in float32. Raises UserError, with ``key`` in front, where
    tensors are missing, left over or of another shape.
    """
    tensors = renamed(published, RENAMES)
    body = Qwen2VLConfig(**config)
    if "body.language_model.embed_tokens.weight" not in tensors:
        raise UserError(
            f"{key}: the weights have no model.embed_tokens.weight, so they are not HPSv3's; take MizzenAI/HPSv3"
        )
    body.text_config.vocab_size = tensors["body.language_model.embed_tokens.weight"].shape[0]
    if reward_token != body.text_config.vocab_size - 1:
        raise UserError(
            f"{key}: the weights have {body.text_config.vocab_size} words, but base's tokenizer gives the reward token "
            f"the place {reward_token}; HPSv3 is based on Qwen/Qwen2-VL-7B-Instruct"
        )
    if lacking := [place for place in HEAD if f"head.{place}.weight" not in tensors]:
        raise UserError(
            f"{key}: the weights have no rm_head.{lacking[0]}.weight, so they are not HPSv3's; take MizzenAI/HPSv3"
        )
    sizes = linear_sizes(tensors, "head")
    with no_init_weights():
        model = HPSv3Model(body, {place: sizes[place] for place in HEAD}, reward_token)
    load_exactly(model, tensors, key, UNUSED)
    return model.requires_grad_(False).eval()
