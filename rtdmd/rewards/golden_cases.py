"""Pictures drawn by code, and the prompts that scorers are tried on at the start of a run.

A case is I pictures crossed with P prompts. A scorer that ignores the picture, or sees only black, gives one prompt's
pictures equal scores. Most scorers get scenes of the embedded world; those that look for something else get that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from rtdmd.rewards.protocol import Case, Metadata
from rtdmd.rewards.registry import REWARDS
from rtdmd.world.grammar import COLORS, SHAPES
from rtdmd.world.render import CELLS, PLACEMENTS, Scenes, render

_SCENES: tuple[tuple[str, int, dict[int, tuple[str, str]]], ...] = (
    ("a red circle", 1, {4: ("red", "circle")}),
    ("two blue squares", 2, {0: ("blue", "square"), 5: ("blue", "square")}),
    ("a green cross above a yellow triangle", 0, {1: ("green", "cross"), 7: ("yellow", "triangle")}),
    ("nothing", 1, {}),
)
"""What is seen, its background, and the objects by cell."""


def world_case() -> Case:
    """Four scenes of the embedded world, 36 pixels wide; each prompt is right for one of them."""
    mask, color = np.zeros((2, len(_SCENES), CELLS), dtype=int)
    for scene, (_, _, objects) in enumerate(_SCENES):
        for cell, (name, shape) in objects.items():
            mask[scene, cell] = 1 + SHAPES.index(shape) * len(PLACEMENTS)
            color[scene, cell] = COLORS.index(name)
    scenes = Scenes(np.array([background for _, background, _ in _SCENES]), mask, color)
    red = "a photo of a red circle"
    two = "a photo of two squares"
    records: list[dict[str, Any]] = [
        {"tag": "colors", "include": [{"class": "circle", "count": 1, "color": "red"}], "prompt": red},
        {"tag": "counting", "include": [{"class": "square", "count": 2}], "prompt": two},
    ]
    records[1]["exclude"] = [{"class": "square", "count": 3}]
    return Case(torch.as_tensor(render(scenes)), [seen for seen, _, _ in _SCENES], (red, two), records)


def question_case() -> Case:
    """The same scenes with GenEval 2's questions, for scorers that ask."""
    records: list[Metadata] = [
        {"vqa_list": [["Is there a circle in the image?", "Yes"], ["Is the circle red?", "Yes"]]},
        {"vqa_list": [["How many squares are in the image?", "two"]]},
    ]
    return replace(world_case(), metadata=records)


def _drawn(pictures: Sequence[Image.Image]) -> Tensor:
    return torch.stack([torch.from_numpy(np.array(p)).permute(2, 0, 1).float() / 255 for p in pictures])


def text_case() -> Case:
    """Three words and an empty sheet, for scorers that read."""
    words = ("HELLO", "RIVER", "STONE", "")
    pictures = []
    for word in words:
        picture = Image.new("RGB", (256, 96), "white")
        ImageDraw.Draw(picture).text((40, 24), word, fill="black", font=ImageFont.load_default(44))
        pictures.append(picture)
    return Case(_drawn(pictures), words, ('a sign that says "HELLO"', 'a sign that says "STONE"'))


def object_case() -> Case:
    """A stop sign, a clock, a ball and grass, for scorers that look for COCO's objects. Whether a drawing passes for
    one is the detector's opinion, so these need not vary: a record shows a change, not a fault."""
    names = ("stop sign", "clock", "sports ball", "grass")
    pictures = [Image.new("RGB", (256, 256), (86, 140, 60)) for _ in names]
    sign, clock, ball, _ = (ImageDraw.Draw(picture) for picture in pictures)
    sign.rectangle((122, 190, 134, 256), fill=(120, 120, 120))
    sign.regular_polygon((128, 118, 84), 8, rotation=22, fill=(190, 20, 30), outline="white", width=6)
    sign.text((72, 94), "STOP", fill="white", font=ImageFont.load_default(46))
    clock.ellipse((44, 44, 212, 212), fill="white", outline="black", width=8)
    for hour in range(12):
        x = 128 + 66 * np.sin(hour * np.pi / 6)
        y = 128 - 66 * np.cos(hour * np.pi / 6)
        clock.text((x - 8, y - 10), str(hour or 12), fill="black", font=ImageFont.load_default(18))
    clock.line((128, 128, 128, 76), fill="black", width=5)
    clock.line((128, 128, 168, 150), fill="black", width=7)
    ball.ellipse((70, 70, 186, 186), fill=(235, 130, 40), outline="black", width=3)
    ball.line((70, 128, 186, 128), fill="black", width=3)
    ball.line((128, 70, 128, 186), fill="black", width=3)
    prompts = ("a photo of a stop sign", "a photo of a clock")
    records: list[Metadata] = [
        {"tag": "single_object", "include": [{"class": name, "count": 1}], "prompt": prompt}
        for name, prompt in zip(names, prompts, strict=False)
    ]
    return Case(_drawn(pictures), names, prompts, records, varies=False)


def case_of(name: str) -> Case:
    """The case that a scorer of this name is tried on: its own, or the embedded world's."""
    own = REWARDS[name].case if name in REWARDS else None
    return own() if own is not None else world_case()
