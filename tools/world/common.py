"""What the world's pre-training parts share: work folders, a learning-rate shape, latents, and how a part ends."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from rtdmd.common.files import write_json

if TYPE_CHECKING:
    from tools.world.settings import WorldParams

WORK = Path("results/world")


def start(params: WorldParams) -> None:
    """Pin threads and deterministic kernels before a part trains."""
    torch.set_num_threads(params.threads)
    torch.use_deterministic_algorithms(True)


def part_folder(root: Path, part: str) -> Path:
    """A fresh temporary folder for a part's result; ``finish`` gives it its name."""
    folder = root / WORK / f".{part}.tmp"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def finish(folder: Path, metrics: Mapping[str, float]) -> None:
    """Write metrics.json and rename the temporary folder to its final name in one step; print the figures."""
    write_json(folder / "metrics.json", dict(metrics))
    final = folder.with_name(folder.name.removeprefix(".").removesuffix(".tmp"))
    shutil.rmtree(final, ignore_errors=True)
    folder.replace(final)
    print(f"{final}: " + ", ".join(f"{name} {value:.4g}" for name, value in metrics.items()))


def cosine_after(step: int, steps: int, decay: float, warmup: int = 20) -> float:
    """Learning-rate factor: linear warm-up, constant, then a cosine to zero over the last ``decay`` share."""
    if step < warmup:
        return (step + 1) / warmup
    begin = steps * (1 - decay)
    return 1.0 if step < begin else 0.5 * (1 + math.cos(math.pi * (step - begin) / (steps - begin)))
