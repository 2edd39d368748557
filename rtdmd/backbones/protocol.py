"""What training, evaluation and sampling may ask of a text-to-image model, whatever its family.

Shapes: B batch, (C, H, W) latent, L text tokens, D text width, K few-step sampler steps, N teacher steps. Time is the
flow level σ in [0, 1] everywhere; a family that wants 1000 σ, ids or packed latents converts inside its own file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

PUBLISHED = "pytorch_lora_weights.safetensors"  # diffusers' name of an adapter file
LoraKind = Literal["attention", "attention_mlp", "all"]


@dataclass(frozen=True)
class Conditioning:
    """The text side of a transformer's input: named tensors that share their leading batch dimension.

    sd3, flux1: ``encoder_hidden_states`` (B, L, D) and ``pooled_projections`` (B, P); flux2: the first alone. Anything
    that is the same for every prompt (position ids, the guidance input) is not conditioning; the backbone adds it.
    """

    tensors: dict[str, Tensor]

    def __post_init__(self) -> None:
        if len({len(tensor) for tensor in self.tensors.values()}) != 1:
            shapes = {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}
            raise ValueError(f"conditioning tensors must share their batch size, got {shapes}")

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def index(self, rows: Tensor | Sequence[int] | slice) -> Conditioning:
        """The chosen rows, in the chosen order."""
        if not isinstance(rows, slice):
            rows = torch.as_tensor(rows, dtype=torch.long)
        return Conditioning({name: tensor[rows] for name, tensor in self.tensors.items()})

    def expand(self, n: int) -> Conditioning:
        """One row as n rows (a view). n rows stay as they are; anything else raises ValueError."""
        if len(self) not in (1, n):
            raise ValueError(f"cannot expand a conditioning of {len(self)} rows to {n}")
        return Conditioning({name: tensor.expand(n, *tensor.shape[1:]) for name, tensor in self.tensors.items()})

    def repeat_interleave(self, n: int) -> Conditioning:
        """Each row n times in a row: a group of n images for each prompt."""
        return Conditioning({name: tensor.repeat_interleave(n, dim=0) for name, tensor in self.tensors.items()})

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Conditioning:
        """The same conditioning on another device or in another dtype."""
        return Conditioning({name: tensor.to(device=device, dtype=dtype) for name, tensor in self.tensors.items()})

    @staticmethod
    def cat(parts: Sequence[Conditioning]) -> Conditioning:
        """All rows of all parts, in order."""
        tensors = {}
        for name in parts[0].tensors:
            tensors[name] = torch.cat([part.tensors[name] for part in parts])
        return Conditioning(tensors)


class Backbone(Protocol):
    """A loaded teacher and its students' base. Who adapts them (generator, fake score): `rtdmd.train.adapters`."""

    family: str
    transformer: nn.Module
    """The teacher's: what teacher and fake score stand on."""
    student: nn.Module
    """What generator and reference stand on: ``transformer`` itself, or the one that ``model.student`` names."""
    device: torch.device
    dtype: torch.dtype

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Conditioning of B prompts, computed by the family's own diffusers ``encode_prompt``. Needs ``text=True``."""
        ...

    def latent_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one latent at the params' resolution."""
        ...

    def sigmas(self, num_steps: int) -> Tensor:
        """(K+1,) float32 few-step levels: 1, (K-1)/K, ..., 1/K shifted by ``model.shift``, or where that is null by the
        backbone's scheduler, then 0."""
        ...

    def teacher_sigmas(self, num_steps: int) -> Tensor:
        """(N+1,) float32 levels that the backbone's scheduler sets for N ordinary steps, 0 at the end."""
        ...

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
        """Velocity v = ε - x_0, (B, C, H, W) float32, of ``transformer`` at x (B, C, H, W) and sigma (B,).

        ``guidance`` follows the family's rule: classifier-free (needs ``null``, one row or B) or a model input.
        """
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Images (B, 3, H, W) float32 in [0, 1] of latents in the transformer's space; gradients pass."""
        ...

    def encode_images(self, images: Tensor) -> Tensor:
        """Latents (B, C, H, W) float32 in the transformer's space of images (B, 3, H, W) in [0, 1]; no sampling."""
        ...

    def lora_targets(self, kind: LoraKind) -> list[str]:
        """Full names of the linear layers that carry an adapter."""
        ...


class PipelineBackbone(Backbone, Protocol):
    """A backbone that stands on a diffusers pipeline, as all that `load_backbone` gives do."""

    pipeline: Any
    """The diffusers pipeline; parts that were not asked for are None."""
    distilled: bool
    """The guidance weight is an input of the transformer: a guided velocity is one forward, not two."""

    def own_scheduler(self) -> dict[str, Any] | None:
        """The base scheduler's configuration, where the family's pipeline asks it for the few-step levels by itself
        (at the trained resolution, for K steps). None where it spaces K steps otherwise, so that a published folder
        needs another configuration (`rtdmd.publish.scheduler`)."""
        ...


class Asked(NamedTuple):
    """Which parts of a pipeline are loaded: its text encoders, its VAE, its transformer."""

    text: bool
    vae: bool
    transformer: bool


@dataclass(frozen=True)
class Layout:
    """How a family's pipeline takes what we hand it, and how latents lie inside its loop."""

    inputs: Mapping[str, str]  # argument of the pipeline -> tensor of our conditioning
    packed: Callable[[Any, Tensor], Tensor]  # (pipeline, latents (B, C, H, W)) -> latents inside the loop
    given_packed: bool  # whether the argument `latents` is packed too


POOLED_INPUTS = {"prompt_embeds": "encoder_hidden_states", "pooled_prompt_embeds": "pooled_projections"}
"""`Layout.inputs` of a pipeline with a pooled embedding."""
