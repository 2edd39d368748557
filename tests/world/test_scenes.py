"""Drawn scenes: sizes, palette and relations as written, and the verifier's reading of them."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from rtdmd.common.rng import numpy_generator
from rtdmd.world.grammar import COLORS, SHAPES, captions
from rtdmd.world.render import (
    BACKGROUNDS,
    PALETTE,
    PLACEMENTS,
    Scenes,
    cell_masks,
    coverage_map,
    holds,
    render,
    sample_scenes,
)
from rtdmd.world.verifier import parse


def test_holds() -> None:
    truth = {"left of": (0, -1), "right of": (0, 1), "above": (-1, 0), "below": (1, 0)}
    for (relation, offset), (other, (rows, cols)) in product(truth.items(), truth.items()):
        assert holds(relation, rows, cols) == (relation == other), (relation, other, offset)
    assert holds("left of", 2, -2) and holds("below", 2, -2)
    assert not any(holds(relation, 0, 0) for relation in truth)


def test_masks_have_the_area_of_their_shape() -> None:
    masks = cell_masks()
    assert masks.shape == (21, 12, 12) and masks[0].sum() == 0
    area = {"circle": np.pi / 4, "square": 1.0, "triangle": 0.5, "cross": 5 / 9}
    for i, (shape, (size, top, left)) in enumerate(product(SHAPES, PLACEMENTS), start=1):
        assert masks[i].sum() == pytest.approx(area[shape] * size**2, rel=0.04)
        rows, cols = np.nonzero(masks[i].sum(1))[0], np.nonzero(masks[i].sum(0))[0]
        assert (rows[0], rows[-1] - rows[0] + 1, cols[0], cols[-1] - cols[0] + 1) == (top, size, left, size)


def test_a_rendered_scene_has_exactly_its_colours() -> None:
    mask, color = np.zeros((1, 9), dtype=np.int64), np.zeros((1, 9), dtype=np.int64)
    mask[0, 5], color[0, 5] = 1 + SHAPES.index("square") * len(PLACEMENTS), COLORS.index("blue")
    image = render(Scenes(np.array([2]), mask, color))
    assert image.shape == (1, 3, 36, 36) and image.dtype == torch.float32
    inside = image[0, :, 13:23, 25:35]
    assert torch.equal(inside, torch.from_numpy(PALETTE[2])[:, None, None].expand(3, 10, 10))
    assert (image[0] != float(BACKGROUNDS[2])).any(0).sum() == 100
    assert coverage_map(Scenes(np.array([2]), mask, color)).sum() == 100


def test_scenes_hold_the_captions_objects_and_relation() -> None:
    chosen = [caption for caption in captions() for _ in range(2)]
    scenes = sample_scenes(chosen, numpy_generator(0, "scenes"))
    assert len(scenes) == 568
    for i, caption in enumerate(chosen):
        cells = np.nonzero(scenes.mask[i])[0]
        shapes = (scenes.mask[i, cells] - 1) // len(PLACEMENTS)
        wanted = sorted(SHAPES.index(item["class"]) for item in caption.include for _ in range(item["count"]))
        assert sorted(shapes.tolist()) == wanted
        for item in caption.include:
            cell = cells[shapes == SHAPES.index(item["class"])]
            if "color" in item:
                assert scenes.color[i, cell].tolist() == [COLORS.index(item["color"])]
            if "position" in item:
                relation, reference = item["position"]
                other = cells[shapes == SHAPES.index(caption.include[reference]["class"])]
                assert holds(relation, int(cell[0] // 3 - other[0] // 3), int(cell[0] % 3 - other[0] % 3))
    assert set(scenes.background.tolist()) == {0, 1, 2}


def test_what_a_caption_leaves_open_is_uniform() -> None:
    circle = [next(caption for caption in captions() if caption.prompt == "a photo of a circle")] * 3000
    scenes = sample_scenes(circle, numpy_generator(0, "uniform"))
    cells, placement = scenes.mask.argmax(1), (scenes.mask.max(1) - 1) % len(PLACEMENTS)
    assert np.bincount(cells, minlength=9).min() > 333 - 70 and np.bincount(cells, minlength=9).max() < 333 + 70
    colors = np.bincount(scenes.color[np.arange(3000), cells], minlength=4)
    assert colors.min() > 750 - 95 and colors.max() < 750 + 95
    assert (placement == 0).mean() == pytest.approx(0.5, abs=0.04)  # 10 pixels as often as 9


def test_the_same_generator_key_draws_the_same_scenes() -> None:
    one, two, other = (render(sample_scenes(captions()[:50], numpy_generator(0, name))) for name in "aab")
    assert torch.equal(one, two) and not torch.equal(one, other)


def test_parse_reads_every_shape_placement_colour_and_background() -> None:
    """All 4 x 5 x 4 objects on all 3 backgrounds, in every cell in turn."""
    kinds = list(product(range(len(SHAPES)), range(len(PLACEMENTS)), range(len(COLORS)), range(len(BACKGROUNDS))))
    shape, placement, color, background = (np.array(column) for column in zip(*kinds, strict=True))
    row, cell = np.arange(len(kinds)), np.arange(len(kinds)) % 9
    mask, colors = np.zeros((len(kinds), 9), dtype=np.int64), np.zeros((len(kinds), 9), dtype=np.int64)
    mask[row, cell], colors[row, cell] = 1 + shape * len(PLACEMENTS) + placement, color
    read = parse(render(Scenes(background, mask, colors)))
    assert read.state.sum(1).tolist() == [1] * len(kinds) and (read.state >= 0).all()
    assert torch.equal(read.state[row, cell], torch.ones(len(kinds), dtype=torch.long))
    assert read.shape[row, cell].tolist() == shape.tolist()
    assert read.color[row, cell].tolist() == color.tolist()
    assert read.size[row, cell].tolist() == [PLACEMENTS[i][0] for i in placement]
    assert read.background.tolist() == background.tolist()
    assert read.quality[row, cell, shape, color].min().item() == pytest.approx(1.0, abs=1e-4)
