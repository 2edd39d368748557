"""hpsv3: Human Preference Score v3 (arXiv 2508.03789), a Qwen2-VL-7B that reads image and prompt and gives the mean of
their preference score. About -10 to 15, higher is better. Not differentiable: the image is read as 8-bit pixels.

The package returns (mean, spread); as in the public code the mean is the score.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from rtdmd.common.errors import UserError
from rtdmd.common.files import sha256_bytes
from rtdmd.common.model_files import read_config
from rtdmd.common.section import param
from rtdmd.rewards.hpsv3_instruction import INSTRUCTION, REWARD_TOKEN
from rtdmd.rewards.protocol import Metadata, check_batch, checked
from rtdmd.rewards.registration import TEXTS, Recorded, Registration, RewardParams, Source, commit_of
from rtdmd.rewards.scorer import Scorer

if TYPE_CHECKING:
    import torch
    from torch import Tensor

PIXELS = 256 * 28 * 28
"""Every image is scaled to about this many pixels, sides multiples of 28 (hpsv3 1.0.0: 256 image tokens)."""
VERSION = 1


class HPSv3Params(RewardParams):
    """People's ranking, by a vision-language model."""

    name: Literal["hpsv3"] = param("scorer", source="arXiv 2508.03789")
    model: str = param("a folder or Hub id with HPSv3.safetensors", source="MizzenAI/HPSv3")
    revision: str | None = commit_of("model")
    base: str = param(
        "a Qwen2-VL folder or Hub id (its config, tokenizer and preprocessing)", source="Qwen/Qwen2-VL-7B-Instruct"
    )
    base_revision: str | None = commit_of("base")

    sources: ClassVar = {
        "model": Source("revision", (*TEXTS, "HPSv3.safetensors")),
        "base": Source("base_revision", TEXTS),
    }


class HPSv3(Scorer):
    """The scorer of ``params.model`` (HPSv3.safetensors) and ``params.base`` (Qwen2-VL-7B-Instruct without weights)."""

    def __init__(self, params: HPSv3Params, device: torch.device):
        """UserError where a file is missing or another model's."""
        from rtdmd.rewards.hpsv3_model import build
        from rtdmd.rewards.qwenvl import VisionChat, require_kind
        from rtdmd.rewards.weights import file_hashes, file_in, made_from, read_weights

        key = "rewards: hpsv3"
        weights = file_in(Path(params.model), f"{key}: model", "HPSv3.safetensors")
        config = require_kind(Path(params.base), f"{key}: base", "qwen2_vl")
        self.chat = VisionChat(config.parent, f"{key}: base", pixels=PIXELS)
        self.chat.tokenizer.add_tokens([REWARD_TOKEN], special_tokens=True)
        self.reward_token: int = self.chat.tokenizer.convert_tokens_to_ids(REWARD_TOKEN)
        tensors = read_weights(weights, f"{key}: model")
        about = read_config(config, f"{key}: base")
        with made_from(config, f"{key}: base", "Qwen2-VL"):
            self.model = build(tensors, about, self.reward_token, f"{key}: model: {weights}").to(device)
        files = file_hashes([weights, config, *self.chat.files.values()])
        template = f"hpsv3 1.0.0, sha256 {sha256_bytes(INSTRUCTION.encode())}"
        super().__init__(params, device, [self.model], files=files, template=template, version=VERSION)

    def score(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Metadata]) -> Tensor:
        """The mean. UserError where a prompt holds the model's own reward or image token."""
        import torch

        from rtdmd.rewards.qwenvl import to_device

        check_batch(images, prompts, metadata)
        for prompt in prompts:
            if REWARD_TOKEN in prompt:
                raise UserError(f"rewards: hpsv3: the prompt {prompt!r} holds {REWARD_TOKEN}, where the score is read")
        inputs = self.chat(images, [INSTRUCTION.format(text_prompt=prompt) for prompt in prompts])
        with torch.no_grad():
            return checked(self.name, self.model(to_device(inputs, self.device))[:, 0])


REWARD = Registration(HPSv3Params, HPSv3, Recorded(parameters=8_291_375_616, width=2, tokens=1400))  # Qwen2-VL-7B
