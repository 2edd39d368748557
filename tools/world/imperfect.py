"""`rtdmd world imperfect`: the teacher goes on with captions that are partly wrong, and is the one that is committed.

Real teachers learned from captions that were partly wrong: right and wrong images are both in their distribution, each
a clean picture, and a reward can tilt it (tools/world/caption_noise.py). The world's teacher learns to draw what a
caption says first, on true captions, and its distribution is spread afterwards. Trained on such captions from nothing
it hardly learns which attribute belongs to which object, and a reward then has little to choose from
(docs/evidence/demo.md).
Text encoders, autoencoder and CLIP know true captions alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from diffusers import StableDiffusion3Pipeline

from rtdmd.world.grammar import Caption
from rtdmd.world.render import Scenes
from tools.world.caption_noise import with_caption_noise
from tools.world.common import WORK, start
from tools.world.settings import WorldParams, load_world_params
from tools.world.teacher import draw_scenes, make_part


def draw_noisy_scenes(
    params: WorldParams, captions: list[Caption], rows: np.ndarray, rng: np.random.Generator
) -> Iterator[Scenes]:
    """One scene for each caption index, batch by batch, with the recipe's caption noise."""
    first = 0
    for own, scenes in draw_scenes(captions, rows, rng):
        yield with_caption_noise(scenes, own, params.imperfect.caption_noise, params.seed, first)
        first += len(own)


def run(root: Path = Path(".")) -> None:
    """Train on from the teacher, with the recipe's caption noise (`tools.world.teacher.make_part`)."""
    params = load_world_params(root)
    own = params.imperfect.model_dump(exclude={"caption_noise"})
    params = params.model_copy(update={"teacher": params.teacher.model_copy(update=own)})
    start(params)
    pipe = StableDiffusion3Pipeline.from_pretrained(
        root / WORK / "teacher" / "teacher", text_encoder_3=None, tokenizer_3=None
    )
    make_part("imperfect", root, params, pipe, partial(draw_noisy_scenes, params))
