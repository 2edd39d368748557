"""FLUX.1 under the conformance suite."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from rtdmd.rehearse.bases import write_base
from rtdmd.rehearse.layouts import FLUX1, LAYOUTS
from tests.backbones.families._family import Family


def encoded(pipeline: Any, prompts: list[str], length: int) -> dict[str, Tensor]:
    hidden, pooled, _ = pipeline.encode_prompt(prompts, None, max_sequence_length=length)
    return {"encoder_hidden_states": hidden, "pooled_projections": pooled}


def packed(pipeline: Any, x: Tensor) -> Tensor:
    tokens: Tensor = pipeline._pack_latents(x, *x.shape)
    return tokens


FAMILY = Family(
    name="flux1",
    write=partial(write_base, family="flux1", name=FLUX1, layout=LAYOUTS[FLUX1], words=()),
    resolution=64,
    guidance=3.5,
    tokens=40,
    encoded=encoded,
    given=packed,
    inner=packed,
    returned=packed,
    targets=(2 * (8 + 3), 2 * (8 + 3 + 4 + 2)),
    distilled=True,
    text={"storage_dtype": "bfloat16", "unpadded": True},
)
