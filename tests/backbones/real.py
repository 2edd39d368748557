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
from rtdmd.torch_setup import quiet_imports

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
SD3 = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 24,
    "attention_head_dim": 64,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
}
FLUX2 = {"patch_size": 1, "in_channels": 128, "attention_head_dim": 128, "mlp_ratio": 3.0, "rope_theta": 2000}
FLUX2 |= {"axes_dims_rope": (32, 32, 32, 32), "eps": 1e-6, "guidance_embeds": False, "timestep_guidance_channels": 256}
CONFIGS: dict[str, dict[str, Any]] = {
    "sd3m": SD3 | {"pos_embed_max_size": 192},
    "sd35m": SD3 | {"pos_embed_max_size": 384, "qk_norm": "rms_norm", "dual_attention_layers": tuple(range(13))},
    "flux1-dev": {
        "patch_size": 1,
        "in_channels": 64,
        "num_layers": 19,
        "num_single_layers": 38,
        "attention_head_dim": 128,
        "num_attention_heads": 24,
        "joint_attention_dim": 4096,
        "pooled_projection_dim": 768,
        "guidance_embeds": True,
        "axes_dims_rope": (16, 56, 56),
    },
    "flux2-klein-4b": FLUX2
    | {"num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24, "joint_attention_dim": 3 * 2560},
    "flux2-klein-9b": FLUX2
    | {"num_layers": 8, "num_single_layers": 24, "num_attention_heads": 32, "joint_attention_dim": 3 * 4096},
}
SCHEDULERS: dict[str, dict[str, Any]] = {
    "sd3": {"num_train_timesteps": 1000, "shift": 3.0},
    "flux": {
        "num_train_timesteps": 1000,
        "shift": 3.0,
        "use_dynamic_shifting": True,
        "base_image_seq_len": 256,
        "max_image_seq_len": 4096,
        "base_shift": 0.5,
        "max_shift": 1.15,
    },
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
    scheduler: str


STABLE = Kind(
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    ("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3"),
    SD3Backbone,
    2,
    "sd3",
)
KLEIN = Kind(Flux2Transformer2DModel, Flux2KleinPipeline, ("vae", "text_encoder", "tokenizer"), Flux2, 2, "flux")
DEV = Kind(
    FluxTransformer2DModel,
    FluxPipeline,
    ("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"),
    Flux1,
    2,
    "flux",
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
    scheduler = FlowMatchEulerDiscreteScheduler(**SCHEDULERS[kind.scheduler])
    pipeline = kind.pipeline(transformer=transformer(name), scheduler=scheduler, **dict.fromkeys(kind.parts))
    return kind.backbone(pipeline, resolution // VAE_FACTOR, 512)


def conditioning(name: str, rows: int) -> Conditioning:
    """Conditioning of ``rows`` prompts on the meta device."""
    return Conditioning({key: torch.empty(rows, *shape, device="meta") for key, shape in TEXT[name].items()})
