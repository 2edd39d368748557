"""Images on their way out: 8-bit pixels, contact sheets with captions, and PNG files with deterministic bytes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from rtdmd.common.files import write_atomic

Pixels = NDArray[np.uint8]
PADDING = 4
INK = (32, 32, 32)
PAPER = (255, 255, 255)
FONT_SIZE = 11


def to_uint8(images: Tensor) -> Pixels:
    """Images (B, 3, H, W) in [0, 1] as (B, H, W, 3) bytes, rounded to the nearest. ValueError for non-finite pixels."""
    if not torch.isfinite(images).all():
        raise ValueError("images have pixels that are not finite")
    scaled = (images.detach().float().clamp(0, 1) * 255).round().to("cpu", torch.uint8)
    return scaled.permute(0, 2, 3, 1).contiguous().numpy()


def grid(images: Tensor, columns: int, captions: Sequence[str] | None = None, scale: int = 1) -> Pixels:
    """A sheet (h, w, 3) of images (B, 3, H, W), row by row, each pixel drawn ``scale`` times, captions (B) underneath.

    A caption too long for its column is broken into lines. ValueError where captions and images differ in number.
    """
    if captions is not None and len(captions) != len(images):
        raise ValueError(f"{len(images)} images but {len(captions)} captions")
    tiles = to_uint8(images).repeat(scale, axis=1).repeat(scale, axis=2)
    height, width = tiles.shape[1:3]
    font = ImageFont.load_default(size=FONT_SIZE)
    texts = ["\n".join(wrapped(caption, width, font)) for caption in captions or [""] * len(tiles)]
    text_height = max(text.count("\n") + 1 for text in texts) * (FONT_SIZE + 3) if captions is not None else 0
    step_x = width + PADDING
    step_y = height + text_height + PADDING
    rows = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (columns * step_x + PADDING, rows * step_y + PADDING), PAPER)
    pen = ImageDraw.Draw(sheet)
    for i, (tile, text) in enumerate(zip(tiles, texts, strict=True)):
        left = PADDING + i % columns * step_x
        top = PADDING + i // columns * step_y
        sheet.paste(Image.fromarray(tile), (left, top))
        pen.multiline_text((left, top + height), text, fill=INK, font=font, spacing=1)
    return np.asarray(sheet)


def png_bytes(pixels: Pixels) -> bytes:
    """A PNG of (h, w, 3) bytes, without metadata: the same pixels give the same bytes."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=9)
    return buffer.getvalue()


def save_png(path: Path, pixels: Pixels) -> None:
    """Write a PNG atomically."""
    write_atomic(path, png_bytes(pixels))


def wrapped(text: str, width: float, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    """Words of ``text`` in lines no wider than ``width`` pixels; a single longer word stays whole."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
