"""Text-to-image models behind one protocol. Each family is one file; `load_backbone` finds it by ``model.family``."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from rtdmd.backbones.loading import check_teacher
from rtdmd.backbones.protocol import Backbone, Conditioning, PipelineBackbone
from rtdmd.backbones.snapshot import teacher_folder

if TYPE_CHECKING:
    from rtdmd.config import ModelParams

__all__ = ["FAMILIES", "Backbone", "Conditioning", "PipelineBackbone", "load_backbone", "require_whole"]

# model.family -> module, which has `load(model, *, text, vae, transformer, device, root) -> PipelineBackbone` and the
# PIPELINE's class; imported when used
FAMILIES = {
    "sd3": "rtdmd.backbones.sd3",
    "flux1": "rtdmd.backbones.flux1",
    "flux2": "rtdmd.backbones.flux2",
}


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
    module = import_module(FAMILIES[model.family])
    parts = {"text": text, "vae": vae, "transformer": transformer}
    backbone: PipelineBackbone = module.load(model, device=torch.device(device), root=root, **parts)
    if not transformer:
        backbone.device = torch.device(device)  # not its skeleton's
    return backbone


def require_whole(model: ModelParams, root: Path = Path(".")) -> None:
    """The teacher's folder on this machine, downloaded first where it is a Hub's, and all of it that can be known
    without reading its weights; UserError that names the file or the tensor that is not as it should be."""
    folder = teacher_folder(model, text=True, vae=True, root=root)
    check_teacher(import_module(FAMILIES[model.family]).PIPELINE, folder, model.family)
