"""The families under the conformance suite. A new backbone adds one entry here, and every test of
test_conformance.py and test_student.py runs on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rtdmd.backbones import Conditioning, PipelineBackbone, load_backbone
from rtdmd.config import ModelParams, preset
from tests.backbones.tiny_flux import SIDE, make, tiny_flux1, tiny_flux2
from tests.tiny import IMAGE_SIZE, tiny_pipeline

PROMPTS = ["a photo of a red circle", "two squares and a zebra"]


@dataclass(frozen=True)
class Family:
    """How plain diffusers is asked for what a backbone gives: the pipeline, its call, and its latents' layout."""

    name: str
    pipeline: Callable[[], Any]  # a tiny random pipeline with all parts, of the real classes
    resolution: int
    guidance: float  # the guided weight under test
    tokens: int  # max_sequence_length
    encoded: Callable[[Any, list[str], int], dict[str, Tensor]]  # (pipeline, prompts, length) -> what encode gives
    given: Callable[[Any, Tensor], Tensor]  # our latents as the pipeline's `latents=` argument
    inner: Callable[[Any, Tensor], Tensor]  # our latents as they are inside the pipeline's loop
    returned: Callable[[Any, Tensor], Tensor]  # our latents as the pipeline returns them for output_type="latent"
    targets: tuple[int, int]  # adapted layers of the tiny transformer: attention, attention_mlp
    distilled: bool = False  # the guidance is an input of the transformer
    text: dict[str, Any] = field(default_factory=dict)  # cache_teacher's settings under test_stages

    def params(self, folder: Path, **changes: object) -> ModelParams:
        """`model` section for the tiny pipeline in ``folder``."""
        about = {"family": self.name, "teacher": str(folder), "resolution": self.resolution}
        about |= {"guidance": self.guidance, "max_sequence_length": self.tokens}
        return preset("world", {"model": about | changes}).model

    def load(self, folder: Path, text: bool = True, vae: bool = True, **changes: object) -> PipelineBackbone:
        """Our backbone on that folder."""
        return load_backbone(self.params(folder, **changes), text=text, vae=vae)

    def call(self, pipeline: Any, x1: Tensor, steps: int, prompts: Sequence[str] = PROMPTS, **options: Any) -> Tensor:
        """What the pipeline's own ``__call__`` gives from our initial latents x1 (B, C, H, W)."""
        defaults = {"height": self.resolution, "width": self.resolution, "max_sequence_length": self.tokens}
        defaults |= {"output_type": "latent", "num_inference_steps": steps, "latents": self.given(pipeline, x1.clone())}
        images: Tensor = pipeline(prompt=list(prompts), **defaults | options).images
        return images


def sd3_encoded(pipeline: Any, prompts: list[str], length: int) -> dict[str, Tensor]:
    hidden, _, pooled, _ = pipeline.encode_prompt(
        prompts, None, None, do_classifier_free_guidance=False, max_sequence_length=length
    )
    return {"encoder_hidden_states": hidden, "pooled_projections": pooled}


def flux1_encoded(pipeline: Any, prompts: list[str], length: int) -> dict[str, Tensor]:
    hidden, pooled, _ = pipeline.encode_prompt(prompts, None, max_sequence_length=length)
    return {"encoder_hidden_states": hidden, "pooled_projections": pooled}


def unchanged(_: Any, x: Tensor) -> Tensor:
    return x


def flux1_packed(pipeline: Any, x: Tensor) -> Tensor:
    tokens: Tensor = pipeline._pack_latents(x, *x.shape)
    return tokens


def flux2_raw(pipeline: Any, x: Tensor) -> Tensor:
    """Without the batch norm's scale, in the VAE's own layout."""
    norm, eps = pipeline.vae.bn, pipeline.vae.config.batch_norm_eps
    std = torch.sqrt(norm.running_var.view(1, -1, 1, 1) + eps)
    latents: Tensor = pipeline._unpatchify_latents(x * std + norm.running_mean.view(1, -1, 1, 1))
    return latents


SD3 = Family(
    name="sd3",
    pipeline=lambda: tiny_pipeline(t5=True),
    resolution=IMAGE_SIZE,
    guidance=4.5,
    tokens=40,
    encoded=sd3_encoded,
    given=unchanged,
    inner=unchanged,
    returned=unchanged,
    targets=(15, 21),
)
FLUX1 = Family(
    name="flux1",
    pipeline=tiny_flux1,
    resolution=SIDE,
    guidance=3.5,
    tokens=40,
    encoded=flux1_encoded,
    given=flux1_packed,
    inner=flux1_packed,
    returned=flux1_packed,
    targets=(8 + 2 * 3, 8 + 2 * 3 + 4 + 2 * 2),
    distilled=True,
    text={"storage_dtype": "bfloat16", "unpadded": True},
)
FLUX2 = Family(
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
    returned=flux2_raw,
    targets=(8 + 2 * 2, 8 + 2 * 2 + 4),
    text={"mode": "on_the_fly"},
)
FAMILIES = {family.name: family for family in (SD3, FLUX1, FLUX2)}


@dataclass(frozen=True)
class Loaded:
    """A family's tiny folder, plain diffusers on it, and our backbone on it."""

    family: Family
    folder: Path
    pipeline: Any
    backbone: PipelineBackbone
    cond: Conditioning
    null: Conditioning


def load(family: Family, folder: Path) -> Loaded:
    """Write the family's tiny pipeline to ``folder`` and open it twice."""
    make(family.pipeline(), folder)
    backbone = family.load(folder)
    return Loaded(family, folder, plain(family, folder), backbone, backbone.encode(PROMPTS), backbone.encode([""]))


def plain(family: Family, folder: Path) -> Any:
    """Plain diffusers on the folder, by the class that its index names."""
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
