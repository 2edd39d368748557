"""How the embedded world's teacher, text encoders, autoencoder and CLIP are made: `rtdmd world <part>`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """One part of the world: the module of its name here, and what workflow/rules/world.smk has to know of it."""

    title: str
    after: tuple[str, ...] = ()  # parts that it reads
    code: tuple[str, ...] = ()  # modules of its own beside the one of its name
    mem_mb: int = 2000
    minutes: int = 60


PARTS = {
    "text": Part("two text encoders learn to parse captions", minutes=30),
    "vae": Part("the autoencoder"),
    "clip": Part("the CLIP model that serves as reward and feature space", after=("text",)),
    "teacher": Part(
        "the multi-step teacher (the long part: about an hour)",
        after=("text", "vae"),
        mem_mb=4000,
        minutes=120,
    ),
    "imperfect": Part(
        "the teacher goes on with captions that are partly wrong: the one that is committed",
        after=("teacher",),
        code=("tools/world/caption_noise.py", "tools/world/teacher.py"),
        mem_mb=4000,
        minutes=40,
    ),
}
"""What is trained, in this order; `assemble` then pins it under data/world."""
