"""Drawing scenes: a scene is nine cells, each empty or holding one coloured shape, over a grey background.

Shapes are 9 or 10 pixels in cells of 12, so that neighbours keep a gap of at least 2 pixels. A scene is three small
integer arrays, so that thousands are sampled and drawn at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from rtdmd.world import CELL, GRID, IMAGE_SIZE
from rtdmd.world.grammar import COLORS, SHAPES, Caption

CELLS = GRID * GRID
PALETTE = np.array([[0.90, 0.12, 0.12], [0.10, 0.70, 0.20], [0.15, 0.25, 0.92], [0.96, 0.85, 0.10]], dtype=np.float32)
BACKGROUNDS = np.array([0.15, 0.50, 0.85], dtype=np.float32)  # grey levels
PLACEMENTS = ((10, 1, 1), (9, 1, 1), (9, 1, 2), (9, 2, 1), (9, 2, 2))  # (size, top, left) inside a cell
SUPERSAMPLE = 4


@dataclass(frozen=True)
class Scenes:
    """A batch of N scenes.

    background: (N,) index into BACKGROUNDS; mask: (N, 9) 0 for an empty cell, else 1 + shape * 5 + placement;
    color: (N, 9) index into COLORS, meaningful where mask > 0. Cells are row-major.
    """

    background: np.ndarray
    mask: np.ndarray
    color: np.ndarray

    def __len__(self) -> int:
        return len(self.background)


def _inside(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Whether points (u right, v down, in [0, 1]) lie inside a unit shape."""
    if shape == "circle":
        return (u - 0.5) ** 2 + (v - 0.5) ** 2 <= 0.25
    if shape == "square":
        return np.ones_like(u, dtype=bool)
    if shape == "triangle":
        return np.abs(u - 0.5) <= 0.5 * v
    return (np.abs(u - 0.5) <= 1 / 6) | (np.abs(v - 0.5) <= 1 / 6)  # cross: arms a third of the size


@lru_cache(maxsize=1)
def cell_masks() -> np.ndarray:
    """Coverage masks, (21, 12, 12) float32 in [0, 1]: entry 0 is empty, then shape-major by placement."""
    steps = (np.arange(CELL * SUPERSAMPLE) + 0.5) / SUPERSAMPLE
    y, x = np.meshgrid(steps, steps, indexing="ij")
    out = [np.zeros((CELL, CELL), dtype=np.float32)]
    for shape in SHAPES:
        for size, top, left in PLACEMENTS:
            u = (x - left) / size
            v = (y - top) / size
            hit = _inside(shape, u, v) & (u >= 0) & (u <= 1) & (v >= 0) & (v <= 1)
            out.append(hit.reshape(CELL, SUPERSAMPLE, CELL, SUPERSAMPLE).mean((1, 3)).astype(np.float32))
    return np.stack(out)


def _cells_for(caption: Caption, count: int, rng: np.random.Generator) -> np.ndarray:
    """Distinct cells for the caption's objects, uniform over the arrangements that satisfy its relation."""
    while True:
        cells = rng.permutation(CELLS)[:count]
        relation = next((item["position"][0] for item in caption.include if "position" in item), None)
        if relation is None:
            return cells
        (row_ref, col_ref) = divmod(cells[0], GRID)
        (row, col) = divmod(cells[1], GRID)
        if holds(relation, row - row_ref, col - col_ref):
            return cells


def holds(relation: str, rows: int, cols: int) -> bool:
    """Whether an object ``rows`` below and ``cols`` right of the reference stands in ``relation`` to it."""
    return {"left of": cols < 0, "right of": cols > 0, "above": rows < 0, "below": rows > 0}[relation]


def sample_scenes(captions: Sequence[Caption], rng: np.random.Generator) -> Scenes:
    """One random scene for each caption: exactly its objects; what it leaves open is uniform."""
    n = len(captions)
    background = rng.integers(len(BACKGROUNDS), size=n)
    mask = np.zeros((n, CELLS), dtype=np.int64)
    color = np.zeros((n, CELLS), dtype=np.int64)
    for i, caption in enumerate(captions):
        objects = [item for item in caption.include for _ in range(item["count"])]
        for cell, item in zip(_cells_for(caption, len(objects), rng), objects, strict=True):
            size = 0 if rng.random() < 0.5 else int(rng.integers(1, len(PLACEMENTS)))  # 10 px and 9 px alike
            mask[i, cell] = 1 + SHAPES.index(item["class"]) * len(PLACEMENTS) + size
            color[i, cell] = COLORS.index(item["color"]) if "color" in item else rng.integers(len(COLORS))
    return Scenes(background, mask, color)


def render(scenes: Scenes) -> Tensor:
    """Draw scenes: float32 (N, 3, 36, 36) in [0, 1]."""
    coverage = cell_masks()[scenes.mask][:, :, None]  # (N, 9, 1, 12, 12)
    grey = BACKGROUNDS[scenes.background][:, None, None, None, None]
    cells = grey * (1 - coverage) + PALETTE[scenes.color][:, :, :, None, None] * coverage  # (N, 9, 3, 12, 12)
    grid = cells.reshape(-1, GRID, GRID, 3, CELL, CELL).transpose(0, 3, 1, 4, 2, 5)
    return torch.from_numpy(np.ascontiguousarray(grid.reshape(-1, 3, IMAGE_SIZE, IMAGE_SIZE), dtype=np.float32))


def coverage_map(scenes: Scenes) -> Tensor:
    """Where the objects are: float32 (N, 1, 36, 36) in [0, 1]."""
    grid = cell_masks()[scenes.mask].reshape(-1, GRID, GRID, CELL, CELL).transpose(0, 1, 3, 2, 4)
    return torch.from_numpy(np.ascontiguousarray(grid.reshape(-1, 1, IMAGE_SIZE, IMAGE_SIZE)))
