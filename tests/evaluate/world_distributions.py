"""Distributions of world images that are known exactly: a large bank of records, from which samples are drawn with
weights."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from scipy.special import rel_entr

from rtdmd.common.rng import numpy_generator
from rtdmd.evaluate.parses import Parses
from rtdmd.world.grammar import COLORS, SHAPES, captions_of
from rtdmd.world.render import CELLS, PLACEMENTS, Scenes, sample_scenes
from rtdmd.world.verifier import Parse, _judge
from tools.world.caption_noise import with_caption_noise
from tools.world.settings import CaptionNoiseParams

START = CaptionNoiseParams.model_validate(
    {
        "single_object": {"another_shape": 0.06},
        "two_object": {"dropped_object": 0.175, "another_shape": 0.175},
        "counting": {"another_number": 0.60},
        "colors": {"another_color": 0.35},
        "position": {"any_arrangement": 0.75, "exchanged_places": 0.0},
        "color_attr": {"exchanged_colors": 0.30, "another_color": 0.30},
        "counted_color": {"another_number": 0.60},
        "colored_position": {"any_arrangement": 0.75, "exchanged_places": 0.0},
    }
)
"""The shares that tools/world/caption_noise.py says to start from."""


def parse_of(scenes: Scenes) -> Parse:
    """What the verifier would read from the scenes' images, without drawing them (no quality)."""
    state = (scenes.mask > 0).astype(np.int64)
    kind = np.maximum(scenes.mask - 1, 0)
    sizes = np.array([size for size, _, _ in PLACEMENTS])[kind % len(PLACEMENTS)]
    columns = (state, state * (kind // len(PLACEMENTS)), state * scenes.color, state * sizes)
    read = [torch.from_numpy(column) for column in columns]
    quality = torch.zeros(len(scenes), CELLS, len(SHAPES), len(COLORS))
    return Parse(*read, quality, torch.from_numpy(scenes.background))


@lru_cache(maxsize=1)
def bank(each: int = 200) -> Parses:
    """``each`` images of every held-out caption as a teacher of noisy captions draws them: the whole distribution."""
    captions = captions_of("heldout")
    texts = [caption for caption in captions for _ in range(each)]
    scenes = sample_scenes(texts, numpy_generator(0, "bank"))
    scenes = with_caption_noise(scenes, texts, START, 0, 0)
    right = []
    for c, caption in enumerate(captions):
        rows = slice(c * each, (c + 1) * each)
        own = Scenes(scenes.background[rows], scenes.mask[rows], scenes.color[rows])
        right.append(_judge(parse_of(own), caption.metadata())[0].numpy())
    read = parse_of(scenes)
    return Parses(
        prompts=np.repeat(np.arange(len(captions)), each),
        indices=np.tile(np.arange(each), len(captions)),
        tags=np.array([caption.tag for caption in texts]),
        right=np.concatenate(right),
        background=scenes.background,
        state=read.state.numpy(),
        shape=read.shape.numpy(),
        color=read.color.numpy(),
        size=read.size.numpy(),
    )


def tilted(p: np.ndarray, beta: np.ndarray | float) -> np.ndarray:
    """The right images' share, of shares ``p``, after weighting them by exp(beta)."""
    return p * np.exp(beta) / (1 - p + p * np.exp(beta))


def kl(q: np.ndarray, p: np.ndarray) -> np.ndarray:
    """KL of two Bernoulli distributions, nats."""
    return rel_entr(q, p) + rel_entr(1 - q, 1 - p)


def draw(distribution: Parses, weights: np.ndarray, per_tag: int, rng: np.random.Generator) -> Parses:
    """``per_tag`` images of each tag, its captions in turn, from the distribution with these weights within each
    caption."""
    rows = []
    for tag in dict.fromkeys(distribution.tags.tolist()):
        ids = np.unique(distribution.prompts[distribution.tags == tag])
        for place, caption in enumerate(ids):
            own = np.flatnonzero(distribution.prompts == caption)
            share = weights[own] / weights[own].sum()
            rows.append(rng.choice(own, len(range(place, per_tag, len(ids))), p=share))
    return distribution.rows(np.concatenate(rows))
