"""Pixels out: rounding, the sheet's geometry, and PNG bytes that repeat."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rtdmd.common.images import FONT_SIZE, PADDING, grid, png_bytes, save_png, to_uint8


def solid(*levels: float) -> torch.Tensor:
    return torch.stack([torch.full((3, 8, 10), level) for level in levels])


def test_pixels_are_rounded_to_the_nearest_byte() -> None:
    values = torch.tensor([0.0, 0.49 / 255, 0.51 / 255, 1.0, 1.5, -0.1]).view(-1, 1, 1, 1).expand(6, 3, 2, 2)
    pixels = to_uint8(values)
    assert pixels.dtype == np.uint8 and pixels.shape == (6, 2, 2, 3)
    assert pixels[:, 0, 0, 0].tolist() == [0, 0, 1, 255, 255, 0]
    with pytest.raises(ValueError, match="not finite"):
        to_uint8(torch.full((1, 3, 2, 2), float("inf")))


def test_a_grid_places_images_row_by_row() -> None:
    sheet = grid(solid(0.0, 0.2, 0.4), columns=2, scale=3)
    height, width = 24, 30
    assert sheet.shape == (2 * (height + PADDING) + PADDING, 2 * (width + PADDING) + PADDING, 3)
    corners = [(PADDING, PADDING), (PADDING, 2 * PADDING + width), (2 * PADDING + height, PADDING)]
    for (top, left), level in zip(corners, (0, 51, 102), strict=True):
        assert (sheet[top : top + height, left : left + width] == level).all()
    assert (sheet[2 * PADDING + height :, 2 * PADDING + width :] == 255).all()  # the empty place


def test_captions_are_written_underneath_in_their_column() -> None:
    images = solid(1.0, 1.0)
    plain, captioned = grid(images, 2, scale=10), grid(images, 2, ["", "a photo of a red circle"], scale=10)
    lines = (captioned.shape[0] - plain.shape[0]) / (FONT_SIZE + 3)
    assert lines == 2  # the caption is wider than 100 pixels
    ink = (captioned < 128).all(-1).nonzero()
    assert ink[0].size > 20
    assert ink[0].min() >= PADDING + 80 and ink[1].min() >= 2 * PADDING + 100
    with pytest.raises(ValueError, match="2 images but 1 captions"):
        grid(images, 2, ["one"])


def test_png_bytes_repeat_and_carry_the_pixels_alone(tmp_path: Path) -> None:
    sheet = grid(solid(0.1, 0.9), 2, ["one", "two"])
    data = png_bytes(sheet)
    assert data == png_bytes(sheet.copy())
    picture = Image.open(io.BytesIO(data))
    assert np.array_equal(np.asarray(picture), sheet) and picture.info == {}
    save_png(tmp_path / "sheet.png", sheet)
    assert (tmp_path / "sheet.png").read_bytes() == data
