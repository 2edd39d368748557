"""What a set of world images looks like as a whole: sizes, colours, places and backgrounds, where collapse shows
first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rtdmd.evaluate.diversity import entropy
from rtdmd.evaluate.parses import Parses
from rtdmd.world import GRID
from rtdmd.world.cells import SMALL
from rtdmd.world.grammar import COLORS
from rtdmd.world.render import BACKGROUNDS


def world_figures(read: Parses, metadata: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Figures over N images of N GenEval records; entropies are normalised, 1 = uniform.

    ``clutter`` is the share of images with at least one cell that holds something that is no object. Colours count only
    where the caption names none, cells only where it names no relation, so that the figure is the model's own choice.
    None where there was nothing to count.
    """
    objects = read.state == 1
    no_color = np.array([not any("color" in item for item in record["include"]) for record in metadata])
    no_place = np.array([not any("position" in item for item in record["include"]) for record in metadata])
    cells = np.broadcast_to(np.arange(GRID * GRID), objects.shape)
    return {
        "objects": float(objects.sum(1).mean()),
        "clutter": float((read.state == -1).any(1).mean()),
        "small_share": float((read.size[objects] == SMALL).mean()) if objects.any() else None,
        "color_entropy": entropy(read.color[objects & no_color[:, None]].tolist(), len(COLORS)),
        "position_entropy": entropy(cells[objects & no_place[:, None]].tolist(), GRID * GRID),
        "background_entropy": entropy(read.background.tolist(), len(BACKGROUNDS)),
    }
