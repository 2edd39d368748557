"""Pictures of samples: one grid a model, and the contact sheet with all models side by side for the same prompts and
seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from rtdmd.common.images import wrapped

GAP = 6  # pixels between images
LABEL_WIDTH = 250  # pixels for a prompt
FONT_SIZE = 15
INK = (31, 35, 40)
FAINT = (101, 109, 118)
PAPER = (255, 255, 255)
LINE = (216, 222, 228)


def cell_size(height: int) -> int:
    """Side at which an image is shown: small ones enlarged by the whole factor that reaches at least 108, large ones
    at 192."""
    return height * max(1, -(-108 // height)) if height <= 192 else 192


def tile(image: np.ndarray, side: int) -> Image.Image:
    """One (H, W, 3) uint8 image, ``side`` pixels high: nearest neighbour upwards, area-like (Lanczos) downwards."""
    method = Image.Resampling.NEAREST if side >= image.shape[0] else Image.Resampling.LANCZOS
    height, width = image.shape[:2]
    return Image.fromarray(image).resize((round(side * width / height), side), method)


def grid(rows: Sequence[Sequence[np.ndarray]]) -> Image.Image:
    """Rows of (H, W, 3) uint8 images, one row per prompt."""
    side = max(cell_size(image.shape[0]) for row in rows for image in row)  # suites may differ in size
    columns = max(len(row) for row in rows)
    width = max(round(side * image.shape[1] / image.shape[0]) for row in rows for image in row)
    page = Image.new("RGB", (columns * (width + GAP) + GAP, len(rows) * (side + GAP) + GAP), PAPER)
    for r, row in enumerate(rows):
        for c, image in enumerate(row):
            page.paste(tile(image, side), (GAP + c * (width + GAP), GAP + r * (side + GAP)))
    return page


def contact_sheet(prompts: Sequence[str], grids: Mapping[str, Image.Image]) -> Image.Image:
    """The grids of `grids` (heading -> grid, all of one size) side by side, with the prompts at the left."""
    width, height = next(iter(grids.values())).size
    head = 2 * FONT_SIZE + 10
    page = Image.new("RGB", (LABEL_WIDTH + len(grids) * (width + GAP), head + height), PAPER)
    draw = ImageDraw.Draw(page)
    font = ImageFont.load_default(FONT_SIZE)
    row_height = (height - GAP) / len(prompts)
    for r, prompt in enumerate(prompts):
        top = head + GAP + r * row_height
        lines = wrapped(prompt, LABEL_WIDTH - 16, font)
        text = "\n".join(lines if len(lines) <= 4 else [*lines[:3], lines[3] + " ..."])
        draw.multiline_text((8, top + (row_height - GAP) / 2), text, INK, font, anchor="lm", spacing=5)
        draw.line((0, top - GAP / 2, page.width, top - GAP / 2), LINE)
    for c, (heading, picture) in enumerate(grids.items()):
        left = LABEL_WIDTH + c * (width + GAP)
        title, _, note = heading.partition("\n")
        draw.text((left + GAP, 4), title, INK, font)
        draw.text((left + GAP, 4 + FONT_SIZE + 4), note, FAINT, ImageFont.load_default(FONT_SIZE - 2))
        page.paste(picture.crop((0, GAP, *picture.size)), (left, head + GAP))
    for r in range(1, len(prompts)):
        draw.line((0, head + GAP + r * row_height - GAP / 2, page.width, head + GAP + r * row_height - GAP / 2), LINE)
    return page
