"""Text-to-image models behind one protocol. Each family is one file; `load_backbone` finds it by ``model.family``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from rtdmd.backbones.protocol import Backbone, Conditioning, PipelineBackbone
from rtdmd.errors import UserError

if TYPE_CHECKING:
    from rtdmd.config import ModelParams

__all__ = ["Backbone", "Conditioning", "PipelineBackbone", "load_backbone"]


def load_backbone(
    model: ModelParams,
    *,
    text: bool = False,
    vae: bool = True,
    device: torch.device | str = "cpu",
    root: Path = Path("."),
) -> PipelineBackbone:
    """Load the teacher named by ``params.model``, frozen, in ``model.dtype``, in evaluation mode.

    text: load the text encoders too (only `rtdmd cache_teacher` and `rtdmd sample` need them).
    vae: load the decoder too. root: where a relative ``model.teacher`` starts.
    Raises UserError where the teacher cannot be had or is of another family.
    """
    if model.family == "sd3":
        from rtdmd.backbones.sd3 import load_sd3

        return load_sd3(model, text=text, vae=vae, device=torch.device(device), root=root)
    raise UserError(f"model.family: {model.family} is not available yet; available: sd3")
