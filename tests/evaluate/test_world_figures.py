"""Figures of real world images are those of the world's definition; a collapsed set shows as one."""

import numpy as np
import pytest
import torch

from rtdmd.evaluate.parses import Parses, parses_of
from rtdmd.evaluate.plan import Item
from rtdmd.evaluate.world_figures import world_figures
from rtdmd.prompts.records import Prompt
from rtdmd.world.grammar import Caption, captions_of
from rtdmd.world.render import Scenes, render, sample_scenes
from rtdmd.world.verifier import verify


def read(images: torch.Tensor, captions: list[Caption]) -> Parses:
    """What the verifier reads, in two batches."""
    items = [Item(Prompt(i, c.prompt, c.tag, c.metadata()), 0) for i, c in enumerate(captions)]
    records = [caption.metadata() for caption in captions]
    return parses_of(items, [verify(images[:3], records[:3]), verify(images[3:], records[3:])])


def test_real_images_show_the_worlds_own_frequencies():
    captions = captions_of("train") * 4
    images = render(sample_scenes(captions, np.random.default_rng(0)))
    figures = world_figures(read(images, captions), [caption.metadata() for caption in captions])
    wanted = np.mean([sum(item["count"] for item in c.include) for c in captions])
    assert figures["objects"] == pytest.approx(wanted)
    assert figures["clutter"] == 0
    assert figures["small_share"] == pytest.approx(0.5, abs=0.05)
    assert min(figures[f"{name}_entropy"] for name in ("color", "position", "background")) > 0.99


def test_a_collapsed_set_has_no_entropy():
    caption = next(c for c in captions_of("train") if c.tag == "single_object")
    mask, color = np.zeros((8, 9), dtype=np.int64), np.zeros((8, 9), dtype=np.int64)
    mask[:, 4] = 1
    images = render(Scenes(np.zeros(8, dtype=np.int64), mask, color))
    figures = world_figures(read(images, [caption] * 8), [caption.metadata()] * 8)
    assert figures == {
        "objects": 1.0,
        "clutter": 0.0,
        "small_share": 0.0,
        "color_entropy": 0.0,
        "position_entropy": 0.0,
        "background_entropy": 0.0,
    }


def test_clutter_is_the_share_of_images_that_have_any():
    """One image of four, however many of its cells."""
    captions = captions_of("train")[:4]
    parses = read(render(sample_scenes(captions, np.random.default_rng(0))), captions)
    parses.state[1, :3] = -1
    assert world_figures(parses, [caption.metadata() for caption in captions])["clutter"] == 0.25


def test_colours_that_the_caption_fixes_do_not_count():
    caption = next(c for c in captions_of("train") if c.tag == "color_attr")
    images = render(sample_scenes([caption] * 4, np.random.default_rng(0)))
    assert world_figures(read(images, [caption] * 4), [caption.metadata()] * 4)["color_entropy"] is None
