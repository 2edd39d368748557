"""Pictures: sizes, exact pixels, repeatable bytes."""

import numpy as np
from PIL import Image

from rtdmd.evaluate.grids import GAP, LABEL_WIDTH, cell_size, contact_sheet, grid, png, to_bytes


def _images(n, side=36):
    return list(np.random.default_rng(0).integers(0, 256, size=(n, side, side, 3), dtype=np.uint8))


def test_floats_become_the_nearest_bytes():
    images = np.array([0.0, 1.0, 0.5, 0.2, 1.2, -0.1]).reshape(2, 3, 1, 1)
    assert to_bytes(images).reshape(2, 3).tolist() == [[0, 255, 128], [51, 255, 0]]


def test_small_images_are_enlarged_by_whole_pixels_and_large_ones_reduced():
    assert [cell_size(side) for side in (36, 64, 128, 192, 512, 1024)] == [108, 128, 128, 192, 192, 192]
    image = _images(1)[0]
    page = np.asarray(grid([[image]]))[GAP:-GAP, GAP:-GAP]
    assert np.array_equal(page[1::3, 1::3], image)


def test_grid_and_contact_sheet_have_the_planned_size():
    images = _images(6)
    pictures = {name: grid([images[:2], images[2:4], images[4:]]) for name in ("one\n4 steps", "two")}
    width, height = pictures["two"].size
    assert (width, height) == (2 * (108 + GAP) + GAP, 3 * (108 + GAP) + GAP)
    sheet = contact_sheet(["a photo of a cross", "two", "a very long prompt " * 9], pictures)
    assert sheet.width == LABEL_WIDTH + 2 * (width + GAP)
    assert sheet.height == height + 40
    found = np.asarray(sheet)[40 + GAP : 40 + GAP + 108, LABEL_WIDTH + GAP : LABEL_WIDTH + GAP + 108]
    assert np.array_equal(found[1::3, 1::3], images[0])


def test_same_picture_same_bytes():
    page = grid([_images(3)])
    assert png(page) == png(page.copy())
    assert Image.frombytes("RGB", page.size, page.tobytes()).size == page.size
