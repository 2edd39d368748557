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
    NO_VAE,
    Endings,
    Pipeline,
    Vae,
    adapted_layers,
    evenly_spaced,
    fresh_scheduler,
    latent_size,
    load_pipeline,
    need_text,
    scheduler_settings,
    unit_timestep,
)
from rtdmd.backbones.protocol import Asked, Conditioning, Layout, LoraKind
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
# two layers into which attention and MLP projections are fused.
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


class Flux2:
    """`rtdmd.backbones.protocol.PipelineBackbone` over a Flux2KleinPipeline."""

    family = "flux2"
    distilled = False

    def __init__(self, pipeline: Pipeline, size: tuple[int, int], max_sequence_length: int, shift: float | None = None):
        self.pipeline = pipeline
        self.transformer: nn.Module = pipeline.transformer
        self.student: nn.Module = self.transformer  # `load_backbone` puts another one here where model.student names it
        self.device: torch.device = pipeline.transformer.device
        self.dtype: torch.dtype = pipeline.transformer.dtype
        self.max_sequence_length = max_sequence_length
        self.shift = shift
        self._latent_shape = (pipeline.transformer.config.in_channels, size[0] // PATCH, size[1] // PATCH)
        # taken before any adapter wraps the layers
        self._targets = {kind: adapted_layers(self.transformer, endings) for kind, endings in ENDINGS.items()}

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """The chat template's tokens, padded to ``max_sequence_length``; the padding is read too."""
        need_text(self.pipeline)
        hidden, _ = self.pipeline.encode_prompt(
            prompt=list(prompts), device=self.device, max_sequence_length=self.max_sequence_length
        )
        return Conditioning({"encoder_hidden_states": hidden})

    def latent_shape(self) -> tuple[int, int, int]:
        return self._latent_shape

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
        """Classifier-free: v_u + w (v_c - v_u), one forward of 2 B rows; w = 1 needs no ``null``."""
        guided = guidance != 1.0
        if guided:
            if null is None:
                raise ValueError("classifier-free guidance needs the null prompt's conditioning")
            cond = Conditioning.cat([null.expand(len(x)), cond])
            x = torch.cat([x, x])
            sigma = torch.cat([sigma, sigma])
        hidden = cond.tensors["encoder_hidden_states"].to(self.dtype)
        pipeline = self.pipeline
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
        if not guided:
            return v
        unconditional, conditional = v.chunk(2)
        return unconditional + guidance * (conditional - unconditional)

    def decode(self, latents: Tensor) -> Tensor:
        vae = self.pipeline.vae
        if vae is None:
            raise ValueError(NO_VAE)
        mean, std = _statistics(vae)
        latents = self.pipeline._unpatchify_latents(latents * std + mean)
        images = vae.decode(latents.to(vae.dtype), return_dict=False)[0].float()
        return (images / 2 + 0.5).clamp(0, 1)  # as the pipeline's images: a saturated pixel passes no gradient

    def encode_images(self, images: Tensor) -> Tensor:
        """The mode of the encoder's distribution."""
        vae = self.pipeline.vae
        if vae is None:
            raise ValueError(NO_VAE)
        mean, std = _statistics(vae)
        mode = vae.encode((2 * images - 1).to(vae.dtype)).latent_dist.mode().float()
        latents: Tensor = (self.pipeline._patchify_latents(mode) - mean) / std
        return latents

    def lora_targets(self, kind: LoraKind) -> list[str]:
        """``attention``: the double-stream blocks' attention projections and both fused layers of the
        single-stream blocks; ``attention_mlp``: and the double-stream MLPs; ``all``: every linear layer."""
        return list(self._targets[kind])


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
