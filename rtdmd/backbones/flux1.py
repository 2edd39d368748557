"""FLUX.1 [dev]: FluxPipeline's own parts behind the backbone protocol.

The guidance weight is an input of the transformer (it was distilled into it), so guided velocities cost one forward and
need no null prompt; student and fake score get the input 1. Latents here are (B, 16, H/8, W/8), the VAE's scaled by its
factor; the transformer's 2x2 packing stays inside this file.
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
    Pipeline,
    dynamic_shift,
    evenly_spaced,
    fresh_scheduler,
    latent_size,
    load_pipeline,
    scheduler_settings,
    unit_timestep,
)
from rtdmd.backbones.protocol import POOLED_INPUTS, Asked, Conditioning, Layout
from rtdmd.common.errors import UserError
from rtdmd.common.torch_setup import quiet_imports

with quiet_imports():
    from diffusers import FluxPipeline

if TYPE_CHECKING:
    from rtdmd.config import ModelParams

FAMILY = {
    "title": "FLUX.1 [dev]",
    "clip_tokenizers": ("tokenizer",),
    "long_tokenizers": ("tokenizer_2",),
    "guided_passes": 1,
}
PIPELINE = FluxPipeline
TEXT_PARTS = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
PATCH = 2  # latent pixels a side that make one token
# As published: every attention projection (ATTENTION) of both kinds of block. A single-stream block has none of its own
# behind its attention: `proj_out` reads attention and MLP together and counts as MLP. `all`: every linear layer.
MLP = (".ff.net.0.proj", ".ff.net.2", ".ff_context.net.0.proj", ".ff_context.net.2", ".proj_mlp", ".proj_out")
ENDINGS: Endings = {"attention": ATTENTION, "attention_mlp": ATTENTION + MLP, "all": ("",)}


def load(model: ModelParams, asked: Asked, device: torch.device, root: Path) -> Flux1:
    """Load a FLUX.1 folder or pinned Hub id; arguments as in `rtdmd.backbones.load_backbone`.

    UserError where a guidance is asked of a transformer that has no input for it (FLUX.1 [schnell]).
    """
    pipeline, folder = load_pipeline(model, PIPELINE, TEXT_PARTS, asked, device, root)
    if model.guidance != 1 and not pipeline.transformer.config.guidance_embeds:
        raise UserError(f"model.guidance: {model.guidance:g}, but {folder} has no input for it; allowed for it: 1")
    size = latent_size(model, folder, PATCH)
    return Flux1(pipeline, size, model.max_sequence_length, model.shift)


class Flux1(DiffusersBackbone):
    """`rtdmd.backbones.protocol.PipelineBackbone` over a FluxPipeline."""

    family = "flux1"
    endings = ENDINGS

    def __init__(self, pipeline: Pipeline, size: tuple[int, int], max_sequence_length: int, shift: float | None = None):
        super().__init__(pipeline, size, max_sequence_length, shift)
        self.distilled = pipeline.transformer.config.guidance_embeds
        self._latent_shape = (pipeline.transformer.config.in_channels // PATCH**2, *size)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """T5's ``max_sequence_length`` tokens, and CLIP's pooled output."""
        self.need_text()
        hidden, pooled, _ = self.pipeline.encode_prompt(
            prompt=list(prompts), prompt_2=None, device=self.device, max_sequence_length=self.max_sequence_length
        )
        return Conditioning({"encoder_hidden_states": hidden, "pooled_projections": pooled})

    def sigmas(self, num_steps: int) -> Tensor:
        """μ grows linearly with the number of image tokens: 0.63 at 512 pixels, 1.15 at 1024."""
        return self._levels(fresh_scheduler(self.pipeline, self.shift), num_steps)

    def teacher_sigmas(self, num_steps: int) -> Tensor:
        """The pipeline spaces its steps as the few-step sampler does."""
        return self._levels(fresh_scheduler(self.pipeline), num_steps)

    def _levels(self, scheduler: Any, num_steps: int) -> Tensor:
        """The levels that ``pipeline(..., num_inference_steps=num_steps)`` sets on ``scheduler``."""
        tokens = (self._latent_shape[1] // PATCH) * (self._latent_shape[2] // PATCH)
        return evenly_spaced(scheduler, num_steps, dynamic_shift(scheduler.config, tokens))

    def own_scheduler(self) -> dict[str, Any]:
        return scheduler_settings(fresh_scheduler(self.pipeline, self.shift))

    def velocity(
        self,
        transformer: nn.Module,
        x: Tensor,
        sigma: Tensor,
        cond: Conditioning,
        *,
        guidance: float = 1.0,
        null: Conditioning | None = None,
    ) -> Tensor:
        """``guidance`` is an input of the transformer; ``null`` is not used."""
        rows, channels, height, width = x.shape
        pipeline = self.pipeline
        if guidance != 1 and not self.distilled:
            raise ValueError(f"guidance {guidance}: this transformer has no input for it")
        inputs = {name: tensor.to(self.dtype) for name, tensor in cond.tensors.items()}
        length = inputs["encoder_hidden_states"].shape[1]
        tokens = transformer(
            hidden_states=pipeline._pack_latents(x.to(self.dtype), rows, channels, height, width),
            timestep=unit_timestep(sigma, self.dtype),
            guidance=torch.full((rows,), guidance, device=x.device) if self.distilled else None,
            txt_ids=torch.zeros(length, 3, device=x.device, dtype=self.dtype),
            img_ids=pipeline._prepare_latent_image_ids(rows, height // PATCH, width // PATCH, x.device, self.dtype),
            return_dict=False,
            **inputs,
        )[0]
        v: Tensor = pipeline._unpack_latents(tokens, height, width, 1)  # in latent pixels: a VAE factor of 1
        return v.float()


def latent_multiple(transformer: Mapping[str, Any]) -> int:
    return PATCH


def text_shapes(model: ModelParams, configs: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[int, ...]]:
    transformer = configs["transformer"]
    hidden = (model.max_sequence_length, transformer["joint_attention_dim"])
    return {"encoder_hidden_states": hidden, "pooled_projections": (transformer["pooled_projection_dim"],)}


BACKBONE = Flux1
LAYOUT = Layout(POOLED_INPUTS, lambda pipeline, x: pipeline._pack_latents(x, *x.shape), True)
