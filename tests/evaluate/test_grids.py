"""Pictures: sizes and exact pixels."""

import numpy as np

from rtdmd.evaluate.grids import GAP, LABEL_WIDTH, cell_size, contact_sheet, grid


def _images(n, side=36):
    return list(np.random.default_rng(0).integers(0, 256, size=(n, side, side, 3), dtype=np.uint8))


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


def test_images_of_two_sizes_stand_in_equal_cells():
    small, large = _images(1)[0], _images(1, 72)[0]
    page = np.asarray(grid([[small], [large]]))
    assert page.shape == (2 * (144 + GAP) + GAP, 144 + 2 * GAP, 3)
    assert np.array_equal(page[GAP : GAP + 144 : 4, GAP : GAP + 144 : 4], small)
    assert np.array_equal(page[2 * GAP + 144 : -GAP : 2, GAP : GAP + 144 : 2], large)


def test_images_that_are_not_square_keep_their_shape():
    wide = np.random.default_rng(1).integers(0, 256, size=(36, 54, 3), dtype=np.uint8)
    page = np.asarray(grid([[wide, wide]]))
    assert page.shape == (108 + 2 * GAP, 2 * (162 + GAP) + GAP, 3)
    assert np.array_equal(page[GAP + 1 : GAP + 108 : 3, 2 * GAP + 163 : -GAP : 3], wide)
