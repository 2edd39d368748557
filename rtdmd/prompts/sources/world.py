"""world: the embedded world's captions."""

from __future__ import annotations

from typing import Literal

from rtdmd.common.section import param
from rtdmd.prompts.records import Source
from rtdmd.prompts.registration import Facts, Reading, Registration, SourceParams


class WorldParams(SourceParams):
    """The embedded world's captions, of which some are held out."""

    name: Literal["world"] = param("the embedded world's captions", source="ours")
    split: Literal["train", "heldout"] = param("which captions: train or heldout", source="ours")


def world_sources(split: str) -> list[Source]:
    """The captions of ``split``: "train" or "heldout"."""
    from rtdmd.world.grammar import captions_of

    return [Source(c.prompt, c.tag, c.metadata(), f"the world's {split} captions") for c in captions_of(split)]


def _read(params: WorldParams, _: Reading) -> tuple[list[Source], Facts]:
    return world_sources(params.split), {}


SOURCE = Registration(WorldParams, _read, provides=("world_verifier",), tags=lambda _: 6)
