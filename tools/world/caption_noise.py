"""Caption noise: with a probability by tag, a training image of the teacher is a clean picture of something else.

Real teachers learned from captions that were partly wrong, so right and wrong images are both in their distribution and
a reward can tilt it. Here the text of a caption stays and the scene is drawn for another content, by the world's own
grammar. The shares are `imperfect.caption_noise` in data/world/params.yaml. "start" are those of the first prototype,
whose guided teacher scored 0.98 / 0.90 / 0.37 / 0.75 / 0.53 / 0.63 by GenEval's tags, mean 0.69:

| tag | error | the scene | start | still right |
|---|---|---|---|---|
| single_object | another_shape | one of the other three shapes | 0.06 | never |
| two_object | dropped_object | one of the two objects is missing, either alike | 0.175 | never |
| | another_shape | either object takes one of the other three shapes, its partner's too | 0.175 | never |
| counting, counted_color | another_number | another number of 1 to 4; shape and colour stay | 0.60 | never |
| colors | another_color | one of the other three colours | 0.35 | never |
| position, colored_position | any_arrangement | both objects in any two cells | 0.75 | 27 of 72 arrangements: 3/8 |
| | exchanged_places | the opposite relation | 0 | never |
| color_attr | exchanged_colors | the colours change places; where they are one: another_color | 0.30 | never |
| | another_color | either object takes one of the other three colours | 0.30 | never |

So a share e of `any_arrangement` makes 5 e / 8 of a relation's images wrong and leaves 3/8 of them right at least, for
which there is `exchanged_places`; every other share is the share of wrong images itself. What a caption leaves open
stays uniform in a wrong scene too. The errors of an image are keyed by the recipe's seed and the image's number: a
higher share only adds wrong images, and right ones keep their pixels.

Held-out captions stay unseen as texts. A wrong scene may show what one of them describes, as right scenes may.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from rtdmd.common.rng import numpy_generator
from rtdmd.world.grammar import COLORS, NUMBERS, SHAPES, Caption, Item
from rtdmd.world.render import Scenes, sample_scenes
from tools.world.settings import CaptionNoiseParams
from tools.world.text import OPPOSITE

Items = tuple[Item, ...]


def wrong_scene(caption: Caption, error: str, rng: np.random.Generator) -> Caption:
    """The caption's text over the entries of a scene that contradicts it, as `rtdmd.world.render.sample_scenes` draws
    it. ``error``: a key of ERRORS that the caption's tag can have (the module's table)."""
    return replace(caption, include=ERRORS[error](caption.include, rng), exclude=())


def draw_error(caption: Caption, noise: CaptionNoiseParams, rng: np.random.Generator) -> str | None:
    """Which error an image of the caption has, by the shares of its tag; None: it shows its caption."""
    point = rng.random()
    for error, share in noise.of(caption.tag).items():
        if point < share:
            return error
        point -= share
    return None


def with_caption_noise(
    scenes: Scenes, captions: Sequence[Caption], noise: CaptionNoiseParams, seed: int, first: int
) -> Scenes:
    """``scenes`` of N captions, those with an error drawn anew; image i of them is number ``first`` + i of the data."""
    background = scenes.background.copy()
    mask = scenes.mask.copy()
    color = scenes.color.copy()
    for i, caption in enumerate(captions):
        rng = numpy_generator(seed, "caption-noise", first + i)
        error = draw_error(caption, noise, rng)
        if error is not None:
            wrong = sample_scenes([wrong_scene(caption, error, rng)], rng)
            background[i] = wrong.background[0]
            mask[i] = wrong.mask[0]
            color[i] = wrong.color[0]
    return Scenes(background, mask, color)


def _other(value: object, values: Sequence[object], rng: np.random.Generator) -> object:
    """One of ``values`` that is not ``value``."""
    others = [other for other in values if other != value]
    return others[rng.integers(len(others))]


def _changed(items: Items, row: int, key: str, value: object) -> Items:
    """The entries with one value of one of them replaced."""
    return tuple(item | {key: value} if i == row else item for i, item in enumerate(items))


def _another_shape(items: Items, rng: np.random.Generator) -> Items:
    row = int(rng.integers(len(items)))
    changed = _changed(items, row, "class", _other(items[row]["class"], SHAPES, rng))
    if len({item["class"] for item in changed}) < len(changed):  # two of one shape are one entry of the grammar
        return (changed[0] | {"count": len(changed)},)
    return changed


def _dropped_object(items: Items, rng: np.random.Generator) -> Items:
    return (items[rng.integers(len(items))],)


def _another_number(items: Items, rng: np.random.Generator) -> Items:
    return _changed(items, 0, "count", _other(items[0]["count"], (1, *NUMBERS), rng))


def _another_color(items: Items, rng: np.random.Generator) -> Items:
    row = int(rng.integers(len(items)))
    return _changed(items, row, "color", _other(items[row]["color"], COLORS, rng))


def _exchanged_colors(items: Items, rng: np.random.Generator) -> Items:
    first, second = items
    if first["color"] == second["color"]:
        return _another_color(items, rng)
    return first | {"color": second["color"]}, second | {"color": first["color"]}


def _any_arrangement(items: Items, rng: np.random.Generator) -> Items:
    return tuple({key: value for key, value in item.items() if key != "position"} for item in items)


def _exchanged_places(items: Items, rng: np.random.Generator) -> Items:
    reference, subject = items
    relation, row = subject["position"]
    return reference, subject | {"position": [OPPOSITE[relation], row]}


ERRORS: dict[str, Callable[[Items, np.random.Generator], Items]] = {
    "another_shape": _another_shape,
    "dropped_object": _dropped_object,
    "another_number": _another_number,
    "another_color": _another_color,
    "exchanged_colors": _exchanged_colors,
    "any_arrangement": _any_arrangement,
    "exchanged_places": _exchanged_places,
}
