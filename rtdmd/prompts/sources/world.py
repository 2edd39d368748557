"""The embedded world's captions as a source of prompts."""

from __future__ import annotations

from rtdmd.prompts.records import Source
from rtdmd.world.grammar import captions_of


def world_sources(split: str) -> list[Source]:
    """The embedded world's captions of ``split``: "train" or "heldout"."""
    return [Source(c.prompt, c.tag, c.metadata(), f"the world's {split} captions") for c in captions_of(split)]
