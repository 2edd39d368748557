"""The families under the conformance suite: a file each, named as the family, which assigns its entry to FAMILY. Every
test of test_conformance.py, test_student.py and test_stages.py runs on it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rtdmd.backbones import Conditioning, PipelineBackbone
from rtdmd.common.discovery import discover
from tests.backbones.families._family import PROMPTS, Family

__all__ = ["FAMILIES", "PROMPTS", "Family", "Loaded", "load", "plain"]

FAMILIES = discover("tests.backbones.families", "FAMILY", Family)


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
    family.write(folder)
    backbone = family.load(folder)
    return Loaded(family, folder, plain(family, folder), backbone, backbone.encode(PROMPTS), backbone.encode([""]))


def plain(family: Family, folder: Path) -> Any:
    """Plain diffusers on the folder, by the class that its index names."""
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(folder, dtype=torch.float32)  # its files are of 16 bits
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
