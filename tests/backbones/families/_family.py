"""What an entry of the conformance suite is: how plain diffusers is asked for what a backbone gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from rtdmd.backbones import PipelineBackbone, load_backbone
from rtdmd.config import ModelParams, preset

PROMPTS = ["a photo of a red circle", "two squares and a zebra"]


@dataclass(frozen=True)
class Family:
    """How plain diffusers is asked for what a backbone gives: the pipeline, its call, and its latents' layout."""

    name: str
    write: Callable[[Path], None]  # a tiny random pipeline with all parts, of the real classes, into a folder
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


def unchanged(_: Any, x: Tensor) -> Tensor:
    return x
