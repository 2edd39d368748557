"""FLUX.2 [klein]: Flux2KleinPipeline's own parts behind the backbone protocol.

Conditioning is three hidden layers of Qwen3 (9, 18, 27) side by side, guidance is classifier-free, μ is the pipeline's
empirical one (it depends on image tokens and on the number of steps). Latents here are the transformer's: the VAE's in
2x2 patches, normalised by the running statistics of the VAE's batch norm, (B, 128, H/16, W/16).
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
    Vae,
    evenly_spaced,
    fresh_scheduler,
    latent_size,
    load_pipeline,
    scheduler_settings,
    unit_timestep,
)
from rtdmd.backbones.protocol import Asked, Conditioning, Layout
from rtdmd.common.errors import UserError
from rtdmd.common.torch_setup import quiet_imports

with quiet_imports():
    from diffusers import Flux2KleinPipeline
    from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

if TYPE_CHECKING:
    from rtdmd.config import ModelParams

FAMILY = {
    "title": "FLUX.2 [klein]",
    "clip_tokenizers": (),
    "long_tokenizers": ("tokenizer",),
    "guided_passes": 2,
}
PIPELINE = Flux2KleinPipeline
TEXT_PARTS = ("text_encoder", "tokenizer")
PATCH = 2  # latent pixels a side that make one token
# As published: the attention projections of the double-stream blocks (ATTENTION), and in the single-stream blocks the
# two layers into which attention and MLP projections are fused; then the double-stream MLPs; then every linear layer.
SINGLE = (".attn.to_qkv_mlp_proj", ".attn.to_out")
MLP = (".ff.linear_in", ".ff.linear_out", ".ff_context.linear_in", ".ff_context.linear_out")
ENDINGS: Endings = {"attention": ATTENTION + SINGLE, "attention_mlp": ATTENTION + SINGLE + MLP, "all": ("",)}


def load(model: ModelParams, asked: Asked, device: torch.device, root: Path) -> Flux2:
    """Load a FLUX.2 [klein] folder or pinned Hub id; arguments as in `rtdmd.backbones.load_backbone`.

    UserError where guidance is asked of a step-distilled model: its pipeline would ignore it.
    """
    pipeline, folder = load_pipeline(model, PIPELINE, TEXT_PARTS, asked, device, root)
    if model.guidance != 1 and pipeline.config.is_distilled:
        raise UserError(
            f"model.guidance: {model.guidance:g}, but {folder} is step-distilled and takes none;"
            " name a base model as model.teacher, or set it to 1"
        )
    size = latent_size(model, folder, PATCH)
    return Flux2(pipeline, size, model.max_sequence_length, model.shift)


class Flux2(DiffusersBackbone):
    """`rtdmd.backbones.protocol.PipelineBackbone` over a Flux2KleinPipeline."""

    family = "flux2"
    endings = ENDINGS

    def __init__(self, pipeline: Pipeline, size: tuple[int, int], max_sequence_length: int, shift: float | None = None):
        super().__init__(pipeline, (size[0] // PATCH, size[1] // PATCH), max_sequence_length, shift)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """The chat template's tokens, padded to ``max_sequence_length``; the padding is read too."""
        self.need_text()
        hidden, _ = self.pipeline.encode_prompt(
            prompt=list(prompts), device=self.device, max_sequence_length=self.max_sequence_length
        )
        return Conditioning({"encoder_hidden_states": hidden})

    def sigmas(self, num_steps: int) -> Tensor:
        """μ is the pipeline's for as many steps: 2.03 for 4 steps at 512 pixels."""
        return self._levels(fresh_scheduler(self.pipeline, self.shift), num_steps)

    def teacher_sigmas(self, num_steps: int) -> Tensor:
        """The pipeline spaces its steps as the few-step sampler does."""
        return self._levels(fresh_scheduler(self.pipeline), num_steps)

    def _levels(self, scheduler: Any, num_steps: int) -> Tensor:
        """The levels that ``pipeline(..., num_inference_steps=num_steps)`` sets on ``scheduler``."""
        mu = compute_empirical_mu(self._latent_shape[1] * self._latent_shape[2], num_steps)
        return evenly_spaced(scheduler, num_steps, mu)

    def own_scheduler(self) -> dict[str, Any]:
        return scheduler_settings(fresh_scheduler(self.pipeline, self.shift))

    def forward(self, transformer: nn.Module, x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        pipeline = self.pipeline
        hidden = cond.tensors["encoder_hidden_states"].to(self.dtype)
        tokens = transformer(
            hidden_states=pipeline._pack_latents(x.to(self.dtype)),
            timestep=unit_timestep(sigma, self.dtype),
            guidance=None,
            encoder_hidden_states=hidden,
            txt_ids=pipeline._prepare_text_ids(hidden[:1]).to(x.device),  # every row has the same ids
            img_ids=pipeline._prepare_latent_ids(x[:1]).to(x.device),
            return_dict=False,
        )[0]
        v: Tensor = tokens.transpose(1, 2).reshape(x.shape).float()  # (B, H W, C) -> (B, C, H, W)
        return v

    def to_vae(self, latents: Tensor) -> Tensor:
        mean, std = _statistics(self.pipeline.vae)
        unpatched: Tensor = self.pipeline._unpatchify_latents(latents * std + mean)
        return unpatched

    def from_vae(self, latents: Tensor) -> Tensor:
        mean, std = _statistics(self.pipeline.vae)
        patched: Tensor = (self.pipeline._patchify_latents(latents) - mean) / std
        return patched


def _statistics(vae: Vae) -> tuple[Tensor, Tensor]:
    """(mean, standard deviation), (1, C, 1, 1) float32, of the VAE's patchified latents."""
    mean, variance = (tensor.float().view(1, -1, 1, 1) for tensor in (vae.bn.running_mean, vae.bn.running_var))
    return mean, (variance + vae.config.batch_norm_eps).sqrt()


def latent_multiple(transformer: Mapping[str, Any]) -> int:
    return PATCH


def text_shapes(model: ModelParams, configs: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[int, ...]]:
    return {"encoder_hidden_states": (model.max_sequence_length, configs["transformer"]["joint_attention_dim"])}


BACKBONE = Flux2
LAYOUT = Layout({"prompt_embeds": "encoder_hidden_states"}, lambda pipeline, x: pipeline._pack_latents(x), False)
