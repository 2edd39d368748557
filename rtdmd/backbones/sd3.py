"""Stable Diffusion 3 and 3.5: StableDiffusion3Pipeline's own parts behind the backbone protocol.

Conditioning is the pipeline's ``encode_prompt``, levels are the pipeline's scheduler, guidance is classifier-free. A
pipeline without T5 (``text_encoder_3`` null in its model_index.json) needs no special case: diffusers puts zeros there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rtdmd.backbones.parts import (
    ATTENTION,
    DiffusersBackbone,
    Endings,
    dynamic_shift,
    fresh_scheduler,
    latent_size,
    load_pipeline,
)
from rtdmd.backbones.protocol import POOLED_INPUTS, Asked, Conditioning, Layout
from rtdmd.common.torch_setup import quiet_imports

with quiet_imports():
    from diffusers import StableDiffusion3Pipeline

if TYPE_CHECKING:
    from rtdmd.config import ModelParams

FAMILY = {
    "title": "SD3 and 3.5",
    "clip_tokenizers": ("tokenizer", "tokenizer_2"),
    "long_tokenizers": ("tokenizer_3",),
    "guided_passes": 2,
}
PIPELINE = StableDiffusion3Pipeline
TEXT_PARTS = ("text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3")
# As published: the joint attention (ATTENTION) only, so SD3.5's second self-attention (attn2) carries no adapter; then
# both MLPs; then every linear layer, the modulations, embedders and the output among them.
MLP = (".ff.net.0.proj", ".ff.net.2", ".ff_context.net.0.proj", ".ff_context.net.2")
ENDINGS: Endings = {"attention": ATTENTION, "attention_mlp": ATTENTION + MLP, "all": ("",)}


def load(model: ModelParams, asked: Asked, device: torch.device, root: Path) -> SD3Backbone:
    """Load an SD3 pipeline folder or pinned Hub id; arguments as in `rtdmd.backbones.load_backbone`."""
    pipeline, folder = load_pipeline(model, PIPELINE, TEXT_PARTS, asked, device, root)
    size = latent_size(model, folder, pipeline.transformer.config.patch_size)
    return SD3Backbone(pipeline, size, model.max_sequence_length, model.shift)


class SD3Backbone(DiffusersBackbone):
    """`rtdmd.backbones.protocol.Backbone` over a StableDiffusion3Pipeline."""

    family = "sd3"
    endings = ENDINGS

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """T5, where there is one, reads ``max_sequence_length`` tokens."""
        self.need_text()
        hidden, _, pooled, _ = self.pipeline.encode_prompt(
            prompt=list(prompts),
            prompt_2=None,
            prompt_3=None,
            device=self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.max_sequence_length,
        )
        return Conditioning({"encoder_hidden_states": hidden, "pooled_projections": pooled})

    def sigmas(self, num_steps: int) -> Tensor:
        """Shift 3 and K = 4 give 1, 0.9, 0.75, 0.5, 0."""
        raw = [(num_steps - k) / num_steps for k in range(num_steps)]
        return self._scheduled(fresh_scheduler(self.pipeline, self.shift), sigmas=raw)

    def teacher_sigmas(self, num_steps: int) -> Tensor:
        """These are the levels of ``pipeline(..., num_inference_steps=N)``."""
        return self._scheduled(fresh_scheduler(self.pipeline), num_inference_steps=num_steps)

    def _scheduled(self, scheduler: Any, **steps: Any) -> Tensor:
        """The levels that a scheduler sets for ``steps``."""
        if scheduler.config.use_dynamic_shifting:
            _, height, width = self._latent_shape  # μ from the number of image tokens, as in the pipeline's `__call__`
            patch = self.pipeline.transformer.config.patch_size
            steps["mu"] = dynamic_shift(scheduler.config, (height // patch) * (width // patch))
        scheduler.set_timesteps(**steps)
        levels: Tensor = scheduler.sigmas
        return levels.clone()

    def forward(self, transformer: nn.Module, x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        timestep = sigma * self.pipeline.scheduler.config.num_train_timesteps
        inputs = {name: tensor.to(self.dtype) for name, tensor in cond.tensors.items()}
        out = transformer(hidden_states=x.to(self.dtype), timestep=timestep, return_dict=False, **inputs)
        v: Tensor = out[0].float()
        return v

    def own_scheduler(self) -> None:
        """The pipeline spaces K steps its own way, down to the smallest level of its training."""


def latent_multiple(transformer: Mapping[str, Any]) -> int:
    return int(transformer["patch_size"])


def text_shapes(model: ModelParams, configs: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[int, ...]]:
    """CLIP's tokens, then T5's or zeros."""
    transformer = configs["transformer"]
    length = configs["text_encoder"]["max_position_embeddings"] + model.max_sequence_length
    hidden = (length, transformer["joint_attention_dim"])
    return {"encoder_hidden_states": hidden, "pooled_projections": (transformer["pooled_projection_dim"],)}


BACKBONE = SD3Backbone
LAYOUT = Layout(POOLED_INPUTS, lambda _, x: x, False)
