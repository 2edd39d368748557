"""What the file of a family of models has to have, and how it is found by its name."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch

from rtdmd.backbones.protocol import Asked, Layout, PipelineBackbone
from rtdmd.common.errors import UserError

if TYPE_CHECKING:
    from rtdmd.config import ModelParams


class FamilyModule(Protocol):
    """What a family's file has beside FAMILY, which `rtdmd.config.families` describes."""

    PIPELINE: Any  # diffusers' class of the pipeline
    BACKBONE: Any  # our class, called with (pipeline, (height, width) of the latents, max_sequence_length, shift)
    LAYOUT: Layout

    def load(self, model: ModelParams, asked: Asked, device: torch.device, root: Path) -> PipelineBackbone:
        """`load_backbone` for this family."""
        ...

    def latent_multiple(self, transformer: Mapping[str, Any]) -> int:
        """What the side of the VAE's latents has to be a multiple of, from the transformer's config."""
        ...

    def text_shapes(self, model: ModelParams, configs: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[int, ...]]:
        """Shape of one prompt's conditioning, by tensor, as `encode` gives it; configs: config.json by part."""
        ...


def family_module(name: str) -> FamilyModule:
    """The file of a family, imported when used. UserError that names what it lacks."""
    module = import_module(f"rtdmd.backbones.{name}")
    needed = ("PIPELINE", "BACKBONE", "LAYOUT", "load", "latent_multiple", "text_shapes")
    lacking = [part for part in needed if part not in vars(module)]
    if lacking:
        raise UserError(f"rtdmd/backbones/{name}.py: {lacking[0]} is missing; see docs/extending.md")
    return cast(FamilyModule, module)
