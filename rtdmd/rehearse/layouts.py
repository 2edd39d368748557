"""How the repositories of the real presets' bases lie on the Hub, as facts: which are gated, what is sharded, and what
lies beside the files that are read. Read from the Hub's listings; sizes are `rtdmd.plan.published`'s."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Layout(NamedTuple):
    """A diffusers repository."""

    like: str
    """Key of `rtdmd.plan.published.TEACHERS` with its configurations."""
    gated: bool = False
    distilled: bool = False
    """FLUX.2's step-distilled models say so in their index."""
    dtype: str = "bfloat16"
    """Of the weights: 16 bits by their sizes; which kind of them the listings do not say."""
    dtypes: Mapping[str, str] = {}
    """Of the parts that have another one."""
    shards: Mapping[str, int] = {}
    """Files of a part's weights, where they are more than one."""
    variants: tuple[str, ...] = ()
    """Parts with a second copy of their weights, named fp16."""
    beside: tuple[str, ...] = ()
    """Other files, which no part names."""


SD3M = "stabilityai/stable-diffusion-3-medium-diffusers"
SD35M = "stabilityai/stable-diffusion-3.5-medium"
FLUX1 = "black-forest-labs/FLUX.1-dev"
KLEIN_BASE_4B = "black-forest-labs/FLUX.2-klein-base-4B"
KLEIN_4B = "black-forest-labs/FLUX.2-klein-4B"
KLEIN_BASE_9B = "black-forest-labs/FLUX.2-klein-base-9B"
KLEIN_9B = "black-forest-labs/FLUX.2-klein-9B"

_SD3_TEXT = ("text_encoder", "text_encoder_2", "text_encoder_3")
_4B = Layout(KLEIN_BASE_4B, shards={"text_encoder": 2})
_9B = Layout(KLEIN_BASE_9B, gated=True, shards={"text_encoder": 4, "transformer": 2})

LAYOUTS = {
    SD3M: Layout(
        SD3M, gated=True, dtype="float16", shards={"text_encoder_3": 2}, variants=_SD3_TEXT, beside=("mmdit.png",)
    ),
    SD35M: Layout(
        SD35M,
        gated=True,
        dtype="float16",
        dtypes={"transformer": "bfloat16"},
        shards={"text_encoder_3": 2},
        variants=_SD3_TEXT,
        beside=(
            "SD3.5M_example_workflow.json",
            "sd3.5_medium.safetensors",
            "text_encoders/clip_g.safetensors",
            "text_encoders/clip_l.safetensors",
            "text_encoders/t5xxl_fp16.safetensors",
            "text_encoders/t5xxl_fp8_e4m3fn.safetensors",
        ),
    ),
    FLUX1: Layout(
        FLUX1,
        gated=True,
        shards={"text_encoder_2": 2, "transformer": 3},
        beside=("ae.safetensors", "flux1-dev.safetensors"),
    ),
    KLEIN_BASE_4B: _4B._replace(beside=("flux-2-klein-base-4b.safetensors",)),
    KLEIN_4B: _4B._replace(distilled=True, beside=("flux-2-klein-4b.safetensors",)),
    KLEIN_BASE_9B: _9B._replace(beside=("flux-2-klein-base-9b.safetensors",)),
    KLEIN_9B: _9B._replace(distilled=True, beside=("flux-2-klein-9b.safetensors",)),
}
"""By the name on the Hub."""
EVERYWHERE = (".gitattributes", "LICENSE.md", "README.md")
