"""An image of the world in nine characters: what the verifier read in its cells, row by row.

`.` is an empty cell, `?` clutter, every other character an object: by shape, then colour, then size (9 pixels before
10), in the order of OBJECTS.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rtdmd.world import GRID
from rtdmd.world.grammar import COLORS, SHAPES

RECORD = ("prompt_id", "index", "tag", "strict", "background", "cells")
"""The columns of an image in parses.csv and watched_parses.csv."""
SMALL = 9  # pixels: the smaller of the world's two sizes
EMPTY = "."
CLUTTER = "?"
OBJECTS = "0123456789abcdefghijklmnopqrstuv"  # shape * 8 + color * 2 + (size is 10 pixels)
_CODES = {letter: code for code, letter in enumerate(OBJECTS)}


def cell_letters(state: np.ndarray, shape: np.ndarray, color: np.ndarray, size: np.ndarray) -> list[str]:
    """A text of nine characters for each of N images, from (N, 9) arrays: state 0 empty, 1 object, -1 clutter, and of
    objects shape and colour as indices and the size in pixels; what these are elsewhere is not read."""
    here = state == 1
    code = np.where(here, shape * 2 * len(COLORS) + color * 2 + (size != SMALL), 0)
    letters = np.where(here, np.array(list(OBJECTS))[code], EMPTY)
    return ["".join(row) for row in np.where(state == -1, CLUTTER, letters)]


def is_cells(text: str) -> bool:
    """Whether a text is one of `cell_letters`."""
    return len(text) == GRID * GRID and set(text) <= {EMPTY, CLUTTER, *OBJECTS}


def read_cells(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The arrays of `cell_letters`, each (N, 9): state, shape, color and size, which are 0 where there is no object."""
    letters = np.array([list(text) for text in texts])
    state = np.where(letters == EMPTY, 0, np.where(letters == CLUTTER, -1, 1))
    codes = []
    for text in texts:
        codes.append([_CODES.get(letter, 0) for letter in text])
    code = np.array(codes)
    shape = np.where(state == 1, code // (2 * len(COLORS)), 0)
    color = np.where(state == 1, code // 2 % len(COLORS), 0)
    return state, shape, color, np.where(state == 1, SMALL + code % 2, 0)


assert len(OBJECTS) == 2 * len(SHAPES) * len(COLORS)
