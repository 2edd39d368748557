"""Captions of the embedded world: six GenEval tags over four shapes and four colours, 284 captions in all.

The split into ``train`` and ``heldout`` is part of the world: no trained part (text encoders, CLIP, teacher, students)
ever sees a held-out caption or an image drawn for one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations, product
from typing import Any, Literal

from rtdmd.common.rng import permutation

SHAPES = ("circle", "square", "triangle", "cross")
PLURALS = {"circle": "circles", "square": "squares", "triangle": "triangles", "cross": "crosses"}
COLORS = ("red", "green", "blue", "yellow")
# Nouns that only the text encoders read: from many they learn that "a" means one, whatever follows.
OTHER_NOUNS: tuple[str, ...] = ("ring", "tree", "bird", "boat", "key", "bell", "drum", "hat", "lamp", "clock", "chair")
OTHER_NOUNS += ("apple", "kite", "flower", "button", "arrow", "cup", "ball", "door", "fork", "lemon", "sofa")
OTHER_NOUNS += ("fan", "mug")
NUMBERS = {2: "two", 3: "three", 4: "four"}
RELATIONS = ("left of", "right of", "above", "below")
TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")

# Held-out captions per tag, about one in eight; small tags keep enough to train on.
HELDOUT = {"single_object": 1, "two_object": 2, "counting": 2, "colors": 3, "position": 6, "color_attr": 24}
SPLIT_KEY = "world-heldout-v1"

Item = dict[str, Any]  # one GenEval "include" entry


@dataclass(frozen=True)
class Caption:
    """One caption: text, tag, GenEval ``include``/``exclude`` entries, and the split it belongs to."""

    prompt: str
    tag: str
    include: tuple[Item, ...]
    exclude: tuple[Item, ...]
    split: Literal["train", "heldout"]

    def metadata(self) -> dict[str, Any]:
        """The GenEval-format record of this caption."""
        record: dict[str, Any] = {"tag": self.tag, "include": [dict(item) for item in self.include]}
        if self.exclude:
            record["exclude"] = [dict(item) for item in self.exclude]
        return record | {"prompt": self.prompt}


def _article(words: str) -> str:
    return f"a {words}"


def _compose(tag: str) -> list[tuple[str, tuple[Item, ...], tuple[Item, ...]]]:
    """All (prompt, include, exclude) of a tag, in a fixed order."""
    one = [(shape, {"class": shape, "count": 1}) for shape in SHAPES]
    pairs = list(permutations(SHAPES, 2))
    if tag == "single_object":
        return [(_article(shape), (item,), ()) for shape, item in one]
    if tag == "two_object":
        return [(f"a {a} and a {b}", ({"class": a, "count": 1}, {"class": b, "count": 1}), ()) for a, b in pairs]
    if tag == "counting":
        return [
            (f"{word} {PLURALS[s]}", ({"class": s, "count": n},), ({"class": s, "count": n + 1},))
            for (n, word), s in product(NUMBERS.items(), SHAPES)
        ]
    if tag == "colors":
        return [
            (f"a {color} {shape}", ({"class": shape, "count": 1, "color": color},), ())
            for color, shape in product(COLORS, SHAPES)
        ]
    if tag == "position":
        return [
            (f"a {a} {rel} a {b}", ({"class": b, "count": 1}, {"class": a, "count": 1, "position": [rel, 0]}), ())
            for (a, b), rel in product(pairs, RELATIONS)
        ]
    if tag == "color_attr":
        return [
            (
                f"a {ca} {a} and a {cb} {b}",
                ({"class": a, "count": 1, "color": ca}, {"class": b, "count": 1, "color": cb}),
                (),
            )
            for (a, b), ca, cb in product(pairs, COLORS, COLORS)
        ]
    raise ValueError(f"unknown tag {tag!r}; one of {', '.join(TAGS)}")


@lru_cache(maxsize=1)
def captions() -> tuple[Caption, ...]:
    """All 284 captions in a fixed order, each with its split."""
    out: list[Caption] = []
    for tag in TAGS:
        rows = _compose(tag)
        held = set(permutation(len(rows), SPLIT_KEY, tag)[: HELDOUT[tag]])
        out += [
            Caption(f"a photo of {text}", tag, include, exclude, "heldout" if i in held else "train")
            for i, (text, include, exclude) in enumerate(rows)
        ]
    return tuple(out)


def captions_of(split: str) -> list[Caption]:
    """Captions of one split, in the fixed order."""
    return [caption for caption in captions() if caption.split == split]


@lru_cache(maxsize=1)
def auxiliary() -> tuple[Caption, ...]:
    """Captions outside the six tags that only the teacher trains on: numbers and relations of coloured objects.

    The world's own counting captions are twelve and its single objects four; a teacher trained on them alone draws two
    circles for the held-out "a circle" and four squares for the held-out "three squares". None of these is one of the
    284 captions.
    """
    out = [
        Caption(
            f"a photo of {word} {c} {PLURALS[s]}", "counted_color", ({"class": s, "count": n, "color": c},), (), "train"
        )
        for (n, word), c, s in product(NUMBERS.items(), COLORS, SHAPES)
    ]
    for (a, b), rel, ca, cb in product(permutations(SHAPES, 2), RELATIONS, COLORS, COLORS):
        include = (
            {"class": b, "count": 1, "color": cb},
            {"class": a, "count": 1, "color": ca, "position": [rel, 0]},
        )
        out.append(Caption(f"a photo of a {ca} {a} {rel} a {cb} {b}", "colored_position", include, (), "train"))
    return tuple(out)


def words() -> list[str]:
    """Every word that one token stands for, sorted: the captions' words and the text encoders' further nouns."""
    seen = {word for caption in captions() for word in caption.prompt.split()}
    return sorted(seen | {form for noun in OTHER_NOUNS for form in (noun, noun + "s")})
