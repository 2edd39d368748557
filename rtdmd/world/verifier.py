"""The exact verifier: reads an image back into objects and says whether it shows what the caption asks for.

Each 12-pixel cell is compared with every shape, placement and colour on the image's background (the world's whole
alphabet), and is empty, an object, or clutter. *Strict* asks for exactly the caption's objects, colours and relation
and nothing else; *lenient* allows extra objects; *soft* is a graded version in [0, 1] for reinforcement learning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from rtdmd.common.errors import UserError
from rtdmd.world import CELL, GRID, IMAGE_SIZE
from rtdmd.world.grammar import COLORS, SHAPES
from rtdmd.world.render import BACKGROUNDS, PALETTE, PLACEMENTS, cell_masks, holds

VERIFIER = "world_verifier"  # the scorer with which images are of the world
THRESHOLD = 0.45  # least fraction of a template's energy that an object must explain
EMPTY_ENERGY = 0.25  # a cell is empty below this fraction of the faintest template's energy
BACKGROUND_TOLERANCE = 0.12  # largest channel deviation of a pixel that counts as background


@dataclass(frozen=True)
class Parse:
    """What was read from B images; (B, 9) tensors over row-major cells, and (B,) for the background.

    state: 0 empty, 1 object, -1 clutter; shape, color: indices, meaningful where state is 1; size: 9 or 10 pixels;
    quality: (B, 9, shapes, colors) explained energy in [0, 1]; background: index into BACKGROUNDS.
    """

    state: Tensor
    shape: Tensor
    color: Tensor
    size: Tensor
    quality: Tensor
    background: Tensor


@dataclass(frozen=True)
class Verdict:
    """Scores of B images: strict, lenient and soft (B,) float32, count (B,) objects found, and the parse."""

    strict: Tensor
    lenient: Tensor
    soft: Tensor
    count: Tensor
    parse: Parse


@lru_cache(maxsize=4)
def _templates(background: int) -> tuple[Tensor, Tensor]:
    """Templates on a background as differences from it, (shapes*placements*colors, 432), and their energies."""
    masks = torch.from_numpy(cell_masks()[1:])  # (20, 12, 12)
    offset = torch.from_numpy(PALETTE) - float(BACKGROUNDS[background])  # (4, 3)
    bank = masks[:, None, None] * offset[None, :, :, None, None]  # (20, 4, 3, 12, 12)
    flat = bank.reshape(-1, 3 * CELL * CELL)
    return flat, flat.square().sum(1)


def parse(images: Tensor) -> Parse:
    """Read images (B, 3, 36, 36) in [0, 1] into cells. Raises ValueError on another shape or non-finite pixels."""
    if images.ndim != 4 or images.shape[1:] != (3, IMAGE_SIZE, IMAGE_SIZE):
        raise ValueError(
            f"the world's verifier reads (B, 3, {IMAGE_SIZE}, {IMAGE_SIZE}) images, got {tuple(images.shape)}"
        )
    if not torch.isfinite(images).all():
        raise ValueError("the world's verifier was given non-finite pixels")
    images = images.detach().to("cpu", torch.float32).clamp(0, 1)
    levels = torch.as_tensor(BACKGROUNDS, dtype=images.dtype)
    distance = (images[:, None] - levels[None, :, None, None, None]).abs().amax(2)  # (B, levels, H, W)
    background = (distance < BACKGROUND_TOLERANCE).sum((2, 3)).argmax(1)  # the level that the most pixels agree with
    cells = (
        images.reshape(-1, 3, GRID, CELL, GRID, CELL).permute(0, 2, 4, 1, 3, 5).reshape(len(images), GRID * GRID, -1)
    )
    quality = torch.empty(*cells.shape[:2], len(SHAPES), len(PLACEMENTS), len(COLORS))
    energy = torch.empty(cells.shape[:2])
    faintest = torch.empty(len(images), 1)
    for level in range(len(BACKGROUNDS)):
        rows = background == level
        bank, norm = _templates(level)
        difference = cells[rows] - float(BACKGROUNDS[level])
        energy[rows] = difference.square().sum(-1)
        residual = energy[rows][..., None] - 2 * difference @ bank.T + norm
        quality[rows] = (1 - residual / norm).reshape(-1, GRID * GRID, len(SHAPES), len(PLACEMENTS), len(COLORS))
        faintest[rows] = norm.min()
    best, index = quality.flatten(2).max(-1)
    shape = index // (len(PLACEMENTS) * len(COLORS))
    placement = index // len(COLORS) % len(PLACEMENTS)
    sizes = torch.tensor([size for size, _, _ in PLACEMENTS])
    empty = energy < EMPTY_ENERGY * faintest
    state = torch.where(empty, 0, torch.where(best >= THRESHOLD, 1, -1))
    return Parse(state, shape, index % len(COLORS), sizes[placement], quality.amax(3).clamp(0, 1), background)


def _relation(rows: list[Tensor], relation: str) -> Tensor:
    """Whether some object of rows[1] stands in ``relation`` to some object of rows[0]; each (9,) bool."""
    reference, subject = (torch.nonzero(cells).flatten().tolist() for cells in rows)
    return torch.tensor(
        any(holds(relation, s // GRID - r // GRID, s % GRID - r % GRID) for r in reference for s in subject)
    )


def _judge(parsed: Parse, metadata: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """(strict, lenient, soft) of images that share one caption."""
    items = metadata["include"]
    matches = []  # of each item, (B, 9): whether a cell holds an object of its class, and colour where it names one
    parts = []  # of the soft score, (B,) each
    for item in items:
        shape = SHAPES.index(item["class"])
        hit = (parsed.state == 1) & (parsed.shape == shape)
        quality = parsed.quality[:, :, shape]
        if "color" in item:
            color = COLORS.index(item["color"])
            hit = hit & (parsed.color == color)
            quality = quality[..., color]
        else:
            quality = quality.amax(-1)
        matches.append(hit)
        # Mean explained energy of the item's best cells; cells read as something else count half.
        parts.append(torch.where(hit, quality, 0.5 * quality).topk(item["count"], dim=1).values.mean(1))
    found = torch.stack([m.sum(1) for m in matches])  # (items, B)
    wanted = torch.tensor([item["count"] for item in items])[:, None]
    objects = (parsed.state == 1).sum(1)
    clutter = (parsed.state == -1).sum(1)
    related = torch.ones_like(found, dtype=torch.bool)
    for row, item in enumerate(items):
        if "position" in item:
            relation, reference = item["position"]
            pairs = zip(matches[reference], matches[row], strict=True)
            related[row] = torch.stack([_relation(list(pair), relation) for pair in pairs])
    right = related.all(0)
    strict = (found == wanted).all(0) & right & (objects == wanted.sum()) & (clutter == 0)
    lenient = (found >= wanted).all(0) & right
    excess = (objects + clutter - wanted.sum()).abs() / wanted.sum()
    parts += [related[row].float() for row, item in enumerate(items) if "position" in item]
    parts.append((1 - excess).clamp(0, 1))
    return strict, lenient, torch.stack(parts).mean(0)


def verify(images: Tensor, metadata: Sequence[dict[str, Any] | None]) -> Verdict:
    """Judge images (B, 3, 36, 36) in [0, 1] against B GenEval-format records.

    Raises UserError where a record is missing or names what the world does not know.
    """
    if len(images) != len(metadata):
        raise ValueError(f"{len(images)} images but {len(metadata)} metadata records")
    parsed = parse(images)
    strict, lenient, soft = (torch.zeros(len(images)) for _ in range(3))
    groups: dict[str, list[int]] = {}
    for i, record in enumerate(metadata):
        if record is None or any(item["class"] not in SHAPES for item in record["include"]):
            raise UserError(f"world_verifier needs GenEval metadata with shapes {', '.join(SHAPES)}; got {record!r}")
        groups.setdefault(record["prompt"], []).append(i)
    for rows in groups.values():
        part = Parse(
            parsed.state[rows],
            parsed.shape[rows],
            parsed.color[rows],
            parsed.size[rows],
            parsed.quality[rows],
            parsed.background[rows],
        )
        judged = _judge(part, metadata[rows[0]] or {})
        strict[rows], lenient[rows], soft[rows] = (score.float() for score in judged)
    return Verdict(strict, lenient, soft, (parsed.state == 1).sum(1), parsed)
