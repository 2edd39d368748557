"""FLUX.2 under the conformance suite."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.backbones.families._family import Family, unchanged
from tests.backbones.tiny_flux import SIDE, tiny_flux2


def raw(pipeline: Any, x: Tensor) -> Tensor:
    """Without the batch norm's scale, in the VAE's own layout."""
    norm, eps = pipeline.vae.bn, pipeline.vae.config.batch_norm_eps
    std = torch.sqrt(norm.running_var.view(1, -1, 1, 1) + eps)
    latents: Tensor = pipeline._unpatchify_latents(x * std + norm.running_mean.view(1, -1, 1, 1))
    return latents


FAMILY = Family(
    name="flux2",
    pipeline=tiny_flux2,
    resolution=SIDE,
    guidance=4.0,
    tokens=80,
    encoded=lambda pipeline, prompts, length: {
        "encoder_hidden_states": pipeline.encode_prompt(prompts, max_sequence_length=length)[0]
    },
    given=unchanged,
    inner=lambda pipeline, x: pipeline._pack_latents(x),
    returned=raw,
    targets=(8 + 2 * 2, 8 + 2 * 2 + 4),
    text={"mode": "on_the_fly"},
)
