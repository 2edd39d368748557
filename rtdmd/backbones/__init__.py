"""Text-to-image models behind one protocol. Each family is one file; `load_backbone` finds it by ``model.family``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from rtdmd.backbones.family import family_module
from rtdmd.backbones.loading import check_base
from rtdmd.backbones.protocol import Asked, Backbone, Conditioning, PipelineBackbone
from rtdmd.backbones.snapshot import base_folder
from rtdmd.common.torch_setup import DTYPES
from rtdmd.config import families

if TYPE_CHECKING:
    from rtdmd.config import ModelParams

__all__ = [
    "FAMILIES",
    "Backbone",
    "Bases",
    "Conditioning",
    "PipelineBackbone",
    "family_module",
    "load_backbone",
    "require_student",
    "require_whole",
]

FAMILIES = tuple(families.FAMILIES)
"""Names for `model.family`: those of the files here that assign FAMILY."""
Bases = Literal["both", "teacher", "student", "none"]
"""Whose transformer is loaded: where `model.student` is null there is one, and only ``none`` leaves it out."""


def load_backbone(
    model: ModelParams,
    *,
    text: bool = False,
    vae: bool = True,
    bases: Bases = "both",
    device: torch.device | str = "cpu",
    root: Path = Path("."),
) -> PipelineBackbone:
    """Load the teacher named by ``params.model``, frozen, in ``model.dtype``, in evaluation mode.

    text: load the text encoders too (only `rtdmd cache_teacher` and `rtdmd sample` need them).
    vae: load the decoder too.
    bases: whose transformer is loaded. With ``teacher`` the ``student`` of a base of its own has no weights; with
    ``student`` the ``transformer`` is the student's too, in the teacher's pipeline; with ``none`` the backbone can do
    no more than `encode`.
    root: where a relative folder starts.
    Raises UserError where a base cannot be had, is of another family, or the student's does not fit the teacher's.
    """
    own = family_module(model.family)
    place = torch.device(device)
    separate = model.student is not None and bases != "none"
    skip = bases == "none" or (separate and bases == "student")
    backbone = own.load(model, Asked(text, vae, not skip), place, root)
    if skip:
        backbone.device = place  # not its skeleton's
    if not separate:
        return backbone
    if bases == "teacher":
        backbone.student = bare(backbone.transformer)
        return backbone
    from rtdmd.backbones.student import student_transformer  # it loads diffusers, which few users of this room need

    backbone.student = student_transformer(own, model, root, place)
    if bases == "student":
        backbone.transformer = backbone.student
        backbone.dtype = DTYPES[model.dtype]
        backbone.pipeline.register_modules(transformer=backbone.student)
    return backbone


def bare(transformer: Any) -> nn.Module:
    """The same transformer without weights, on the meta device: what stands on it cannot run."""
    with torch.device("meta"):
        module: nn.Module = type(transformer).from_config(transformer.config)
    return module


def require_whole(model: ModelParams, root: Path = Path(".")) -> None:
    """The teacher's folder on this machine, and the student's base where it is another, downloaded first where they are
    a Hub's, and all of them that can be known without reading weights; UserError that names the setting, and the file
    or the tensor that is not as it should be. Of the student's base too the text encoders: stage publish tests its
    folder in that base's own pipeline."""
    own = family_module(model.family)
    for base in model.bases():
        folder = base_folder(base, text=True, vae=True, root=root)
        check_base(own.PIPELINE, folder, model.family, base.key)
    require_student(model, root)


def require_student(model: ModelParams, root: Path = Path(".")) -> None:
    """UserError where the student's base does not fit the teacher's, by their configurations (see
    `rtdmd.backbones.student`)."""
    if model.student is not None:
        from rtdmd.backbones.student import check_student

        check_student(family_module(model.family), model, root)
