"""world: the embedded world's captions.

Held-out captions are for the last word. What is chosen or measured on the way to it is judged on ``validation``, a few
of the training captions, and then trained on ``fit``, the other ones.
"""

from __future__ import annotations

from typing import Literal

from rtdmd.common.section import param
from rtdmd.prompts.records import Source
from rtdmd.prompts.registration import Facts, Reading, Registration, SourceParams

VALIDATION = {"single_object": 1, "two_object": 2, "counting": 2, "colors": 3, "position": 4, "color_attr": 4}
"""Training captions set aside per tag: of a small tag enough stay to train on, of a large one a few stand for it."""


class WorldParams(SourceParams):
    """The embedded world's captions, of which some are held out."""

    name: Literal["world"] = param("the embedded world's captions", source="ours")
    split: Literal["train", "heldout", "fit", "validation"] = param(
        "which captions: train or heldout; fit or validation, the two parts of train", source="ours"
    )


def world_sources(split: str) -> list[Source]:
    """The captions of ``split``: "train" or "heldout", or one of the two parts of train, "fit" and "validation"."""
    from rtdmd.common.rng import permutation  # imports torch
    from rtdmd.world.grammar import captions_of

    captions = captions_of("heldout" if split == "heldout" else "train")
    if split in ("fit", "validation"):
        aside = set[str]()
        for tag, count in VALIDATION.items():
            own = [caption.prompt for caption in captions if caption.tag == tag]
            aside |= {own[i] for i in permutation(len(own), "world-validation-v1", tag)[:count]}
        captions = [caption for caption in captions if (caption.prompt in aside) == (split == "validation")]
    return [Source(c.prompt, c.tag, c.metadata(), f"the world's {split} captions") for c in captions]


def _read(params: WorldParams, _: Reading) -> tuple[list[Source], Facts]:
    return world_sources(params.split), {}


SOURCE = Registration(WorldParams, _read, provides=("world_verifier",), tags=lambda _: 6)
