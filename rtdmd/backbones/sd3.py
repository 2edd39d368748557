"""Stable Diffusion 3 and 3.5: StableDiffusion3Pipeline's own parts behind the backbone protocol.

Conditioning is the pipeline's ``encode_prompt``, levels are the pipeline's scheduler, guidance is classifier-free. A
pipeline without T5 (``text_encoder_3`` null in its model_index.json) needs no special case: diffusers puts zeros there.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn

from rtdmd.backbones.protocol import PUBLISHED, Conditioning, LoraKind
from rtdmd.backbones.snapshot import model_index, teacher_folder
from rtdmd.errors import UserError
from rtdmd.torch_setup import DTYPES, quiet_imports, quiet_loading

with quiet_imports():
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline
    from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import calculate_shift

if TYPE_CHECKING:
    from rtdmd.config import ModelParams

Pipeline: TypeAlias = Any  # a StableDiffusion3Pipeline: diffusers sets its attributes at run time
Vae: TypeAlias = Any  # an AutoencoderKL, likewise
TEXT_PARTS = ("text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3")
# As published: the joint attention only, so SD3.5's second self-attention (attn2) carries no adapter.
ATTENTION = tuple(
    f".attn.{name}"
    for name in ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
)
MLP = (".ff.net.0.proj", ".ff.net.2", ".ff_context.net.0.proj", ".ff_context.net.2")
ENDINGS: dict[LoraKind, tuple[str, ...]] = {"attention": ATTENTION, "attention_mlp": ATTENTION + MLP, "all": ("",)}


def load_sd3(model: ModelParams, *, text: bool, vae: bool, device: torch.device, root: Path = Path(".")) -> SD3Backbone:
    """Load an SD3 pipeline folder or pinned Hub id; arguments as in `rtdmd.backbones.load_backbone`."""
    folder = teacher_folder(model, text=text, vae=vae, root=root)
    index = model_index(folder)
    name = index["_class_name"]
    if name != StableDiffusion3Pipeline.__name__:
        raise UserError(f"model.family: sd3 needs a StableDiffusion3Pipeline, but {folder} is a {name}")
    left_out: list[str] = [part for part, value in index.items() if value == [None, None]]  # diffusers wants these said
    left_out += [] if text else TEXT_PARTS
    left_out += [] if vae else ["vae"]
    with quiet_loading():
        pipeline = StableDiffusion3Pipeline.from_pretrained(
            folder, dtype=DTYPES[model.dtype], local_files_only=True, use_safetensors=True, **dict.fromkeys(left_out)
        )
    return SD3Backbone(pipeline.to(device), folder, model.resolution, model.max_sequence_length)


class SD3Backbone:
    """`rtdmd.backbones.protocol.Backbone` over a StableDiffusion3Pipeline."""

    family = "sd3"

    def __init__(self, pipeline: Pipeline, folder: Path, resolution: int, max_sequence_length: int):
        self.pipeline = pipeline
        self.transformer: nn.Module = pipeline.transformer
        self.device: torch.device = pipeline.transformer.device
        self.dtype: torch.dtype = pipeline.transformer.dtype
        self.max_sequence_length = max_sequence_length
        for module in (part for part in pipeline.components.values() if isinstance(part, nn.Module)):
            module.requires_grad_(False).eval()
        self._latent_shape = _latent_shape(pipeline, folder, resolution)
        # taken before any adapter wraps the layers
        self._targets = {kind: adapted_layers(self.transformer, kind) for kind in ENDINGS}

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """See the protocol. T5, where there is one, reads ``max_sequence_length`` tokens."""
        if self.pipeline.tokenizer is None:
            raise ValueError("this backbone was loaded without its text encoders; use load_backbone(..., text=True)")
        hidden, _, pooled, _ = self.pipeline.encode_prompt(
            prompt=list(prompts),
            prompt_2=None,
            prompt_3=None,
            device=self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.max_sequence_length,
        )
        return Conditioning({"encoder_hidden_states": hidden, "pooled_projections": pooled})

    def latent_shape(self) -> tuple[int, int, int]:
        """See the protocol."""
        return self._latent_shape

    def sigmas(self, num_steps: int) -> Tensor:
        """See the protocol. Shift 3 and K = 4 give 1, 0.9, 0.75, 0.5, 0."""
        raw = [(num_steps - k) / num_steps for k in range(num_steps)]
        return self._scheduled(sigmas=raw)

    def teacher_sigmas(self, num_steps: int) -> Tensor:
        """See the protocol. These are the levels of ``pipeline(..., num_inference_steps=N)``."""
        return self._scheduled(num_inference_steps=num_steps)

    def _scheduled(self, **steps: Any) -> Tensor:
        """Levels from a fresh copy of the pipeline's scheduler, so that the pipeline's own keeps its state."""
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(self.pipeline.scheduler.config)
        if scheduler.config.use_dynamic_shifting:
            steps["mu"] = self._dynamic_shift(scheduler.config)
        scheduler.set_timesteps(**steps)
        return scheduler.sigmas.clone()

    def _dynamic_shift(self, config: Any) -> float:
        """μ from the number of image tokens, as in the pipeline's ``__call__``."""
        _, height, width = self._latent_shape
        patch = self.pipeline.transformer.config.patch_size
        tokens = (height // patch) * (width // patch)
        lengths = config.base_image_seq_len, config.max_image_seq_len
        return float(calculate_shift(tokens, *lengths, config.base_shift, config.max_shift))

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
        """See the protocol. Classifier-free: v_u + w (v_c - v_u), one forward of 2 B rows; w = 1 needs no ``null``."""
        if guidance == 1.0:
            return self._forward(transformer, x, sigma, cond)
        if null is None:
            raise ValueError("classifier-free guidance needs the null prompt's conditioning")
        both = Conditioning.cat([null.expand(len(x)), cond])
        out = self._forward(transformer, torch.cat([x, x]), torch.cat([sigma, sigma]), both)
        unconditional, conditional = out.chunk(2)
        return unconditional + guidance * (conditional - unconditional)

    def _forward(self, transformer: nn.Module, x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        timestep = sigma * self.pipeline.scheduler.config.num_train_timesteps
        inputs = {name: tensor.to(self.dtype) for name, tensor in cond.tensors.items()}
        out = transformer(hidden_states=x.to(self.dtype), timestep=timestep, return_dict=False, **inputs)
        return out[0].float()

    def decode(self, latents: Tensor) -> Tensor:
        """See the protocol. Clamped as the pipeline's own images are: a saturated pixel passes no gradient."""
        vae = self._vae()
        scaled = latents / vae.config.scaling_factor + vae.config.shift_factor
        images = vae.decode(scaled.to(vae.dtype), return_dict=False)[0].float()
        return (images / 2 + 0.5).clamp(0, 1)

    def encode_images(self, images: Tensor) -> Tensor:
        """See the protocol. The mode of the encoder's distribution."""
        vae = self._vae()
        mode = vae.encode((2 * images - 1).to(vae.dtype)).latent_dist.mode().float()
        return (mode - vae.config.shift_factor) * vae.config.scaling_factor

    def _vae(self) -> Vae:
        if self.pipeline.vae is None:
            raise ValueError("this backbone was loaded without its VAE; use load_backbone(..., vae=True)")
        return self.pipeline.vae

    def lora_targets(self, kind: LoraKind) -> list[str]:
        """See the protocol. ``attention``: projections of the joint attention; ``attention_mlp``: and both MLPs;
        ``all``: every linear layer, the modulations, embedders and the output among them."""
        return list(self._targets[kind])

    def load_published(self, folder: Path) -> None:
        """See the protocol. The transformer alone: a published folder adapts no text encoder."""
        state, metadata = self.pipeline.lora_state_dict(folder, weight_name=PUBLISHED, return_lora_metadata=True)
        self.pipeline.load_lora_into_transformer(state, self.transformer, metadata=metadata)


def adapted_layers(transformer: nn.Module, kind: LoraKind) -> list[str]:
    """Full names of the linear layers of an SD3Transformer2DModel that ``kind`` of adapter sits on."""
    linears = (name for name, module in transformer.named_modules() if isinstance(module, nn.Linear))
    return [name for name in linears if name.endswith(ENDINGS[kind])]


def _latent_shape(pipeline: Pipeline, folder: Path, resolution: int) -> tuple[int, int, int]:
    """(C, H, W) at ``resolution`` pixels; UserError where the VAE and the patches do not divide it."""
    config = AutoencoderKL.load_config(folder / "vae", local_files_only=True)
    factor = 2 ** (len(config["block_out_channels"]) - 1)
    multiple = factor * pipeline.transformer.config.patch_size
    if resolution % multiple:
        raise UserError(f"model.resolution: {resolution} is not a multiple of {multiple}, which {folder} needs")
    side = resolution // factor
    return pipeline.transformer.config.in_channels, side, side
