"""Real images to compare with: the world's own drawings of the held-out captions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rtdmd.common.errors import UserError
from rtdmd.common.rng import numpy_generator
from rtdmd.evaluate.judge import Batch
from rtdmd.evaluate.plan import Item
from rtdmd.world.grammar import captions_of
from rtdmd.world.render import Scenes, render, sample_scenes


def world_images(items: Sequence[Item], seed: int, name: str, batch_size: int) -> Iterator[Batch]:
    """One fresh drawing for each item, (B, 3, 36, 36); `name` keeps sets of drawings apart.

    Raises UserError for a prompt that is no held-out caption of the world.
    """
    captions = {caption.prompt: caption for caption in captions_of("heldout")}
    foreign = [item.prompt.prompt for item in items if item.prompt.prompt not in captions]
    if foreign:
        raise UserError(
            f"evaluate.reference: world, but {foreign[0]!r} is not one of its held-out captions; set it to none"
        )
    scenes = sample_scenes([captions[item.prompt.prompt] for item in items], numpy_generator(seed, "evaluate", name))
    for start in range(0, len(items), batch_size):
        part = slice(start, start + batch_size)
        yield items[part], render(Scenes(scenes.background[part], scenes.mask[part], scenes.color[part]))
