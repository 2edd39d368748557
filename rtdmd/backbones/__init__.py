"""Text-to-image models behind one protocol. Each family is one file; `load_backbone` finds it by ``model.family``."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch

from rtdmd.backbones.loading import check_teacher
from rtdmd.backbones.protocol import Backbone, Conditioning, Layout, PipelineBackbone
from rtdmd.backbones.snapshot import teacher_folder
from rtdmd.common.errors import UserError
from rtdmd.config import families

if TYPE_CHECKING:
    from rtdmd.config import ModelParams

__all__ = [
    "FAMILIES",
    "Backbone",
    "Conditioning",
    "PipelineBackbone",
    "family_module",
    "load_backbone",
    "require_whole",
]

FAMILIES = tuple(families.FAMILIES)
"""Names for `model.family`: those of the files here that assign FAMILY."""


class FamilyModule(Protocol):
    """What a family's file has beside FAMILY, which `rtdmd.config.families` describes."""

    PIPELINE: Any  # diffusers' class of the pipeline
    BACKBONE: Any  # our class, called with (pipeline, side of the latents, max_sequence_length)
    LAYOUT: Layout

    def load(
        self, model: ModelParams, *, text: bool, vae: bool, transformer: bool, device: torch.device, root: Path
    ) -> PipelineBackbone:
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
        raise UserError(f"rtdmd/backbones/{name}.py: {lacking[0]} is missing; see docs/backbones.md, how to add one")
    return cast(FamilyModule, module)


def load_backbone(
    model: ModelParams,
    *,
    text: bool = False,
    vae: bool = True,
    transformer: bool = True,
    device: torch.device | str = "cpu",
    root: Path = Path("."),
) -> PipelineBackbone:
    """Load the teacher named by ``params.model``, frozen, in ``model.dtype``, in evaluation mode.

    text: load the text encoders too (only `rtdmd cache_teacher` and `rtdmd sample` need them).
    vae: load the decoder too. transformer: without it the backbone can do no more than `encode`.
    root: where a relative ``model.teacher`` starts.
    Raises UserError where the teacher cannot be had or is of another family.
    """
    own = family_module(model.family)
    backbone = own.load(model, text=text, vae=vae, transformer=transformer, device=torch.device(device), root=root)
    if not transformer:
        backbone.device = torch.device(device)  # not its skeleton's
    return backbone


def require_whole(model: ModelParams, root: Path = Path(".")) -> None:
    """The teacher's folder on this machine, downloaded first where it is a Hub's, and all of it that can be known
    without reading its weights; UserError that names the file or the tensor that is not as it should be."""
    folder = teacher_folder(model, text=True, vae=True, root=root)
    check_teacher(family_module(model.family).PIPELINE, folder, model.family)
