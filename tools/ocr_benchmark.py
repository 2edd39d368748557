"""How well the ocr reward reads: 200 rendered words at several sizes and noise levels, as Markdown tables.

    python -m tools.ocr_benchmark        (a few minutes of one core)

Each word is drawn once per cell in PIL's own font, black on white at a place of its own, in lower, Title or UPPER case
in turn; Gaussian noise is added to the pixels and clamped. The last but one column asks for a word half the list away
instead: what an image scores whose text is legible but wrong.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from rtdmd.rewards.ocr_text import text_score
from rtdmd.rewards.scorers.ocr import Ocr, OcrParams

_TEXT = """
able acid aged also apple area army away baby back ball band bank base beach bear beat bell bike bird blade blue boat
body bone book bottle bowl brain branch bread brick bridge bright brown brush bus cake camera camp candle car carpet
castle cat chair cheese circle city clay clock cloud coat coffee cold cookie copper corner cotton cow cream crown cup
curtain dance dark deer desk dinner dog door dragon dream dress drum duck eagle earth east echo egg engine evening
fabric falcon family farm fence field fire fish flag flower fog forest fork fox frame friend frog fruit garden gate
ghost giant glass gold grape grass green guitar hammer harbor hat heart hill honey horse hotel house ice island
jacket jazz jelly jungle kettle key king kite knife ladder lake lamp leaf lemon light lion magic mango map market
mask metal milk mirror monkey moon motor mountain mouse museum music needle night noise north nurse oak ocean office
olive onion orange orbit oven owl paint palace paper park pearl pencil pepper piano pilot pine planet pocket pond
prize pumpkin quick quiet radio rain ring river robot rocket roof rose salad sand
scarf school shadow silver train zebra
"""
WORDS = tuple(_TEXT.split())
SIZES = (8, 12, 24, 48)
NOISES = (0.0, 0.2, 0.4)
CANVAS = (96, 384)  # height, width: the longest word of the list fits at the largest size


@dataclass(frozen=True)
class Cell:
    """Results of one size and noise level: shares and means over the words, CPU seconds per image."""

    right: float
    score: float
    wrong: float
    seconds: float


def cased(index: int) -> str:
    """Word ``index`` in its case: lower, Title, UPPER in turn."""
    word = WORDS[index]
    return (word, word.title(), word.upper())[index % 3]


def picture(index: int, size: int, noise: float) -> Tensor:
    """Word ``index`` at ``size`` pixels on (3, *CANVAS) in [0, 1], with Gaussian noise of that standard deviation.

    Place and noise depend on the arguments alone. ValueError where the word does not fit.
    """
    font = ImageFont.load_default(size=size)
    left, top, right, bottom = font.getbbox(cased(index))
    room = np.array([CANVAS[1] - (right - left), CANVAS[0] - (bottom - top)])
    if room.min() < 4:
        raise ValueError(f"{cased(index)!r} at size {size} does not fit into {CANVAS}")
    rng = np.random.default_rng([index, size])
    x, y = rng.integers(2, room - 1)
    image = Image.new("L", (CANVAS[1], CANVAS[0]), 255)
    ImageDraw.Draw(image).text((x - left, y - top), cased(index), font=font, fill=0)
    pixels = np.asarray(image, dtype=np.float32)[None] / 255
    noisy = pixels + noise * rng.standard_normal((3, *CANVAS), dtype=np.float32)
    return torch.from_numpy(noisy.clip(0, 1).astype(np.float32))


def measure(reward: Ocr, size: int, noise: float) -> Cell:
    """All words at one size and noise level."""
    texts = []
    start = time.process_time()
    for index in range(len(WORDS)):
        texts += reward.read(picture(index, size, noise)[None])
    seconds = (time.process_time() - start) / len(WORDS)
    right = np.array([text_score(cased(i), text) for i, text in enumerate(texts)])
    wrong = np.array([text_score(cased((i + len(WORDS) // 2) % len(WORDS)), text) for i, text in enumerate(texts)])
    return Cell(float((right == 1).mean()), float(right.mean()), float(wrong.mean()), seconds)


def main() -> None:
    reward = Ocr(OcrParams(name="ocr"), torch.device("cpu"))
    print("| letters, pixels | noise | read without error | mean score | score of another word | CPU s / image |")
    print("|---|---|---|---|---|---|")
    for noise, size in itertools.product(NOISES, SIZES):
        cell = measure(reward, size, noise)
        figures = f"{cell.right:.3f} | {cell.score:.3f} | {cell.wrong:.3f} | {cell.seconds:.3f}"
        print(f"| {size} | {noise} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
