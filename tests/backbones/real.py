"""The five real transformers and schedulers as facts, from the config.json files on the Hub, built on the meta device.

Nothing is downloaded: a meta tensor has a shape and no memory. `backbone` puts our class on them at any resolution.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn

from rtdmd.backbones import Conditioning
from rtdmd.backbones.flux1 import Flux1
from rtdmd.backbones.flux2 import Flux2
from rtdmd.backbones.sd3 import SD3Backbone
from rtdmd.common.torch_setup import quiet_imports
from rtdmd.config import preset
from rtdmd.plan.published import SCHEDULERS, TEACHERS

with quiet_imports():
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        Flux2KleinPipeline,
        Flux2Transformer2DModel,
        FluxPipeline,
        FluxTransformer2DModel,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )

VAE_FACTOR = 8  # all five
PRESETS = ("sd3m", "sd35m", "flux1-dev", "flux2-klein-4b", "flux2-klein-9b")
CONFIGS: dict[str, dict[str, Any]] = {  # without the class, which KINDS names
    name: {key: value for key, value in TEACHERS[preset(name).model.teacher]["transformer"].items() if key[0] != "_"}
    for name in PRESETS
}
TEXT: dict[str, dict[str, tuple[int, ...]]] = {  # conditioning of one prompt at the preset's max_sequence_length
    "sd3m": {"encoder_hidden_states": (77 + 128, 4096), "pooled_projections": (2048,)},
    "sd35m": {"encoder_hidden_states": (77 + 128, 4096), "pooled_projections": (2048,)},
    "flux1-dev": {"encoder_hidden_states": (512, 4096), "pooled_projections": (768,)},
    "flux2-klein-4b": {"encoder_hidden_states": (512, 7680)},
    "flux2-klein-9b": {"encoder_hidden_states": (512, 12288)},
}


@dataclass(frozen=True)
class Kind:
    """The classes of a preset's family."""

    transformer: Any
    pipeline: Any
    parts: tuple[str, ...]
    backbone: Any
    patch: int


STABLE = Kind(
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    ("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3"),
    SD3Backbone,
    2,
)
KLEIN = Kind(Flux2Transformer2DModel, Flux2KleinPipeline, ("vae", "text_encoder", "tokenizer"), Flux2, 2)
DEV = Kind(
    FluxTransformer2DModel,
    FluxPipeline,
    ("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"),
    Flux1,
    2,
)
KINDS = {"sd3m": STABLE, "sd35m": STABLE, "flux1-dev": DEV, "flux2-klein-4b": KLEIN, "flux2-klein-9b": KLEIN}


@cache
def transformer(name: str) -> nn.Module:
    """The preset's transformer on the meta device."""
    with torch.device("meta"):
        return KINDS[name].transformer(**CONFIGS[name]).eval()


def backbone(name: str, resolution: int) -> Any:
    """Our backbone on that transformer, with the published scheduler and no other part."""
    kind = KINDS[name]
    scheduler = FlowMatchEulerDiscreteScheduler(**SCHEDULERS[kind.transformer.__name__])
    pipeline = kind.pipeline(transformer=transformer(name), scheduler=scheduler, **dict.fromkeys(kind.parts))
    return kind.backbone(pipeline, (resolution // VAE_FACTOR, resolution // VAE_FACTOR), 512)


def conditioning(name: str, rows: int) -> Conditioning:
    """Conditioning of ``rows`` prompts on the meta device."""
    return Conditioning({key: torch.empty(rows, *shape, device="meta") for key, shape in TEXT[name].items()})
