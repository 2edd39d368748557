"""The stand-in of a published checkpoint, which `rtdmd import` makes a folder of before the run judges it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from rtdmd.backbones import load_backbone
from rtdmd.config import Params
from rtdmd.rehearse.folder import place_of
from rtdmd.rehearse.stand_in import StandIn

CHECKPOINT = "generator_ema.pt"  # as the public code calls it
_SCALE = 0.1  # of the factors: large enough for the gate to see the adapter


def write_checkpoint(folder: Path, params: Params, bases: Sequence[StandIn]) -> list[str]:
    """Write an adapter of random numbers for the student's base as the public code saves one, and return the arguments
    of the `rtdmd` that imports it. bases: the stand-ins that lie in ``folder``."""
    base = params.model.of_student()
    lies = {(one.repo, one.revision): str(place_of(one, folder)) for one in bases}
    found = lies.get((base.teacher, base.revision), base.teacher)
    backbone = load_backbone(base.model_copy(update={"teacher": found, "revision": None}), vae=False, root=folder)
    rank = params.adapter.rank
    generator = torch.Generator().manual_seed(params.run.seed)
    tensors = {}
    for name in backbone.lora_targets(params.adapter.targets):
        outer, inner = backbone.transformer.get_parameter(f"{name}.weight").shape
        tensors[f"{name}.lora_A.default.weight"] = _SCALE * torch.randn(rank, inner, generator=generator)
        tensors[f"{name}.lora_B.default.weight"] = _SCALE * torch.randn(outer, rank, generator=generator)
    torch.save(tensors, folder / CHECKPOINT)
    said = ["--base", base.teacher, "--alpha", f"{params.adapter.alpha:g}"]
    return ["import", CHECKPOINT, *said, "--out", str(params.evaluate.imported)]
