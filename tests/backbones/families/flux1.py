"""FLUX.1 under the conformance suite."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tests.backbones.families._family import Family
from tests.backbones.tiny_flux import SIDE, tiny_flux1


def encoded(pipeline: Any, prompts: list[str], length: int) -> dict[str, Tensor]:
    hidden, pooled, _ = pipeline.encode_prompt(prompts, None, max_sequence_length=length)
    return {"encoder_hidden_states": hidden, "pooled_projections": pooled}


def packed(pipeline: Any, x: Tensor) -> Tensor:
    tokens: Tensor = pipeline._pack_latents(x, *x.shape)
    return tokens


FAMILY = Family(
    name="flux1",
    pipeline=tiny_flux1,
    resolution=SIDE,
    guidance=3.5,
    tokens=40,
    encoded=encoded,
    given=packed,
    inner=packed,
    returned=packed,
    targets=(8 + 2 * 3, 8 + 2 * 3 + 4 + 2 * 2),
    distilled=True,
    text={"storage_dtype": "bfloat16", "unpadded": True},
)
