"""FLUX.2 under the conformance suite."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from rtdmd.rehearse.bases import write_base
from rtdmd.rehearse.layouts import KLEIN_BASE_4B, LAYOUTS
from tests.backbones.families._family import Family, unchanged


def raw(pipeline: Any, x: Tensor) -> Tensor:
    """Without the batch norm's scale, in the VAE's own layout."""
    norm, eps = pipeline.vae.bn, pipeline.vae.config.batch_norm_eps
    std = torch.sqrt(norm.running_var.view(1, -1, 1, 1) + eps)
    latents: Tensor = pipeline._unpatchify_latents(x * std + norm.running_mean.view(1, -1, 1, 1))
    return latents


FAMILY = Family(
    name="flux2",
    write=partial(write_base, family="flux2", name=KLEIN_BASE_4B, layout=LAYOUTS[KLEIN_BASE_4B], words=()),
    resolution=64,
    guidance=4.0,
    tokens=80,
    encoded=lambda pipeline, prompts, length: {
        "encoder_hidden_states": pipeline.encode_prompt(prompts, max_sequence_length=length)[0]
    },
    given=unchanged,
    inner=lambda pipeline, x: pipeline._pack_latents(x),
    returned=raw,
    targets=(2 * (8 + 2), 2 * (8 + 2 + 4)),
    text={"mode": "on_the_fly"},
)
