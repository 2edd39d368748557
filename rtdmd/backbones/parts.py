"""What the families share: a pipeline's parts loaded and frozen, its levels, guidance, images, adapter names.

Each family stays one readable file; nothing here knows a family.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from rtdmd.backbones.loading import load_part, part_classes, pipeline_parts, skeleton
from rtdmd.backbones.protocol import Asked, Conditioning, LoraKind
from rtdmd.backbones.snapshot import base_folder
from rtdmd.common.errors import UserError
from rtdmd.common.model_files import bring_back, read_config
from rtdmd.common.parsing import first_line
from rtdmd.common.pretrained import FOREIGN
from rtdmd.common.torch_setup import DTYPES, quiet_imports, quiet_loading

with quiet_imports():
    from diffusers import FlowMatchEulerDiscreteScheduler
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

if TYPE_CHECKING:
    from rtdmd.config import ModelParams

Pipeline: TypeAlias = Any  # a diffusers pipeline: its attributes are set at run time
Vae: TypeAlias = Any  # an autoencoder of diffusers, likewise
NO_VAE = "this backbone was loaded without its VAE; use load_backbone(..., vae=True)"
Endings: TypeAlias = Mapping[LoraKind, tuple[str, ...]]
# As published: every projection of a joint attention, image side and text side.
ATTENTION = tuple(
    f".attn.{name}"
    for name in ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
)


def load_pipeline(
    model: ModelParams,
    pipeline_class: Any,
    text_parts: Iterable[str],
    asked: Asked,
    device: torch.device,
    root: Path,
) -> tuple[Pipeline, Path]:
    """(pipeline, its folder): ``model.teacher`` in ``model.dtype``, frozen, in evaluation mode, on ``device``.

    Parts that are not ``asked`` for, and those that the folder's index has no class for, stay out; of the transformer
    its configuration stays, on the meta device. UserError where the folder holds another class of pipeline than the
    family's, or a file of it cannot be read.
    """
    folder = base_folder(model, text=asked.text, vae=asked.vae, root=root)
    classes = part_classes(pipeline_class, folder, model.family, model.key)
    left_out = set[str]() if asked.text else set(text_parts)
    if not asked.vae:
        left_out.add("vae")
    given: dict[str, Any] = dict.fromkeys(pipeline_parts(pipeline_class))
    for part, kind in classes.items():
        if part == "transformer" and not asked.transformer:
            given[part] = skeleton(kind, folder / part, model.key)
        elif part not in left_out:
            given[part] = load_part(kind, folder, part, DTYPES[model.dtype], model.key)
    try:
        with quiet_loading():
            pipeline = pipeline_class.from_pretrained(folder, local_files_only=True, **given)
    except FOREIGN as error:
        raise UserError(f"{model.key}: {folder} cannot be loaded ({first_line(error)})") from error
    modules = [part for part in pipeline.components.values() if isinstance(part, nn.Module)]
    for module in modules:
        module.requires_grad_(False).eval()
    if asked.transformer:
        return pipeline.to(device), folder
    for module in modules:
        if module is not pipeline.transformer:
            module.to(device)
    return pipeline, folder


def latent_size(model: ModelParams, folder: Path, patch: int) -> tuple[int, int]:
    """Height and width of the VAE's latents of an image of ``model.size``, in latent pixels; the transformer sees
    ``patch`` of them as one token. UserError where that does not divide."""
    config = folder / "vae" / "config.json"
    channels = read_config(config, model.key).get("block_out_channels")
    if not isinstance(channels, list) or not channels:
        raise UserError(f"{model.key}: {config} has no block_out_channels; {bring_back(folder)}")
    return fitting_size(model, len(channels), patch, str(folder))


def fitting_size(model: ModelParams, blocks: int, patch: int, name: str) -> tuple[int, int]:
    """`latent_size` behind a VAE of so many blocks; ``name``: what the UserError calls the model."""
    factor: int = 2 ** (blocks - 1)
    for key, side in zip(("resolution", "width"), model.size, strict=True):
        if side % (factor * patch):
            raise UserError(f"model.{key}: {side} is not a multiple of {factor * patch}, which {name} needs")
    height, width = model.size
    return height // factor, width // factor


def fresh_scheduler(pipeline: Pipeline, shift: float | None = None) -> Any:
    """A copy of the pipeline's scheduler, so that the pipeline's own keeps its state; ``shift``: a factor in place of
    its own, which may grow with the image."""
    own = {} if shift is None else {"shift": shift, "use_dynamic_shifting": False}
    return FlowMatchEulerDiscreteScheduler.from_config(pipeline.scheduler.config, **own)


def dynamic_shift(config: Any, tokens: int) -> float:
    """μ of a scheduler's configuration for an image of ``tokens`` tokens, linear between its two lengths, as in the
    pipelines of SD3 and FLUX.1."""
    lengths = config.base_image_seq_len, config.max_image_seq_len
    return float(calculate_shift(tokens, *lengths, config.base_shift, config.max_shift))


def evenly_spaced(scheduler: Any, num_steps: int, mu: float) -> Tensor:
    """(K+1,) levels that a FLUX pipeline sets on its ``scheduler`` for K steps: 1, ..., 1/K shifted by μ, then 0."""
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / num_steps, num_steps), mu=mu)
    levels: Tensor = scheduler.sigmas
    return levels.clone()


def scheduler_settings(scheduler: Any) -> dict[str, Any]:
    """A scheduler's configuration as a published folder holds it: its class and its public entries, sorted."""
    config = scheduler.config
    public = {key: config[key] for key in sorted(config) if not key.startswith("_")}
    return {"_class_name": type(scheduler).__name__, **public}


def unit_timestep(sigma: Tensor, dtype: torch.dtype) -> Tensor:
    """σ as the FLUX pipelines hand it to their transformers: t = 1000 σ in the model's dtype, then divided by 1000.

    In float32 this is σ to the last digit but one, in bfloat16 it rounds as they do.
    """
    return (sigma * 1000).to(dtype) / 1000


def adapted_layers(transformer: nn.Module, endings: tuple[str, ...]) -> list[str]:
    """Full names of the linear layers whose name ends with one of ``endings``, in the model's order."""
    linears = (name for name, module in transformer.named_modules() if isinstance(module, nn.Linear))
    return [name for name in linears if name.endswith(endings)]


class DiffusersBackbone:
    """What the families' backbones have alike: see `rtdmd.backbones.protocol.PipelineBackbone`.

    A family adds ``encode``, its levels, and ``forward`` (``velocity`` where its guidance is not classifier-free); the
    latents of its VAE are scaled and shifted unless it says otherwise.
    """

    family: str
    endings: Endings
    distilled = False

    def __init__(self, pipeline: Pipeline, size: tuple[int, int], max_sequence_length: int, shift: float | None = None):
        """``size``: height and width of the VAE's latents."""
        self.pipeline = pipeline
        self.transformer: nn.Module = pipeline.transformer
        self.student: nn.Module = self.transformer  # `load_backbone` puts another one here where model.student names it
        self.device: torch.device = pipeline.transformer.device
        self.dtype: torch.dtype = pipeline.transformer.dtype
        self.max_sequence_length = max_sequence_length
        self.shift = shift
        self._latent_shape: tuple[int, int, int] = (pipeline.transformer.config.in_channels, *size)
        # taken before any adapter wraps the layers
        self._targets = {kind: adapted_layers(self.transformer, endings) for kind, endings in self.endings.items()}

    def latent_shape(self) -> tuple[int, int, int]:
        return self._latent_shape

    def lora_targets(self, kind: LoraKind) -> list[str]:
        return list(self._targets[kind])

    def need_text(self) -> None:
        """ValueError where the text encoders were left out."""
        if self.pipeline.tokenizer is None:
            raise ValueError("this backbone was loaded without its text encoders; use load_backbone(..., text=True)")

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
        """The family's, with classifier-free guidance: v_u + w (v_c - v_u), one forward of 2 B rows; w = 1 needs no
        ``null``."""
        if guidance == 1.0:
            return self.forward(transformer, x, sigma, cond)
        if null is None:
            raise ValueError("classifier-free guidance needs the null prompt's conditioning")
        both = Conditioning.cat([null.expand(len(x)), cond])
        v = self.forward(transformer, torch.cat([x, x]), torch.cat([sigma, sigma]), both)
        unconditional, conditional = v.chunk(2)
        return unconditional + guidance * (conditional - unconditional)

    def forward(self, transformer: nn.Module, x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        """Velocity (B, C, H, W) float32 without guidance, of a family that has `velocity` from here."""
        raise NotImplementedError

    def decode(self, latents: Tensor) -> Tensor:
        vae = self.pipeline.vae
        if vae is None:
            raise ValueError(NO_VAE)
        images = vae.decode(self.to_vae(latents).to(vae.dtype), return_dict=False)[0].float()
        return (images / 2 + 0.5).clamp(0, 1)  # as the pipeline's images: a saturated pixel passes no gradient

    def encode_images(self, images: Tensor) -> Tensor:
        """The mode of the encoder's distribution."""
        vae = self.pipeline.vae
        if vae is None:
            raise ValueError(NO_VAE)
        return self.from_vae(vae.encode((2 * images - 1).to(vae.dtype)).latent_dist.mode().float())

    def to_vae(self, latents: Tensor) -> Tensor:
        """The VAE's own latents of the transformer's."""
        config = self.pipeline.vae.config
        scaled: Tensor = latents / config.scaling_factor + config.shift_factor
        return scaled

    def from_vae(self, latents: Tensor) -> Tensor:
        """The inverse of ``to_vae``."""
        config = self.pipeline.vae.config
        scaled: Tensor = (latents - config.shift_factor) * config.scaling_factor
        return scaled
