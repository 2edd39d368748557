"""A predictor in LAION's layout; of an embedding of the published width unless told otherwise."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from rtdmd.rehearse.reward_models.files import write_beside
from rtdmd.rewards.published import AESTHETIC_HEAD

LAION = "sac+logos+ava1-l14-linearMSE.pth"


class Predictor(nn.Module):
    """LAION's: dropout sits between the linear layers, so their numbers are 0, 2, 4, 6, 7."""

    def __init__(self, width: int):
        super().__init__()
        sizes = [width, 12, 8, 6, 4, 1]
        linear = [nn.Linear(a, b) for a, b in pairwise(sizes)]
        drop = [nn.Dropout(0.2), nn.Dropout(0.2), nn.Dropout(0.1)]
        self.layers = nn.Sequential(linear[0], drop[0], linear[1], drop[1], linear[2], drop[2], linear[3], linear[4])

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def write_predictor(folder: Path, width: int = AESTHETIC_HEAD[0]) -> Predictor:
    """Write LAION's file for an embedding of ``width`` numbers; returns what it holds."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(3)
        model = Predictor(width).eval()
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), folder / LAION)
    write_beside(folder)
    return model
