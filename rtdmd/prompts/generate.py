"""GenEval-style prompts made here: six tags over the eighty COCO classes, drawn without repetition.

Wording and records follow GenEval's format ("a photo of two dogs"), so that its verifier and reward read them. Nothing
that an evaluation prompt asks for is drawn, whichever way round it names its objects.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from rtdmd.common.errors import UserError
from rtdmd.common.rng import permutation
from rtdmd.prompts.records import BadPrompt, Source
from rtdmd.prompts.sources.geneval import geneval_record
from rtdmd.rewards.geneval_rules import CLASSES, RELATIONS
from rtdmd.rewards.geneval_rules import COLOURS as COLORS

COLORED = tuple(name for name in CLASSES if name != "person")  # a coloured person is no prompt
NUMBERS = {2: "two", 3: "three", 4: "four"}
_MIRRORED = {"right of": "left of", "below": "above"}
_PLURALS = {"person": "people", "knife": "knives", "computer mouse": "computer mice"}
_PLURALS |= {name: name for name in ("sheep", "skis", "scissors")}

Item = dict[str, Any]
PromptParts = tuple[str, list[Item], list[Item]]  # words, include, exclude
_CHOICES: dict[str, tuple[int, ...]] = {  # of each tag: the sizes of what is chosen
    "single_object": (len(CLASSES),),
    "two_object": (len(CLASSES), len(CLASSES)),
    "counting": (len(NUMBERS), len(CLASSES)),
    "colors": (len(COLORS), len(COLORED)),
    "position": (len(CLASSES), len(CLASSES), len(RELATIONS)),
    "color_attr": (len(COLORED), len(COLORED), len(COLORS), len(COLORS)),
}


def generated_sources(
    tags: Mapping[str, int], seed: int, held_out: Iterable[Source], key: str = "prepare_prompts"
) -> list[Source]:
    """``tags[tag]`` prompts of each tag, in the order of ``tags``; the same seed gives the same prompts.

    held_out: evaluation prompts; none is drawn that asks for the same. key: the entry in params.yaml, for messages.
    UserError where a tag has too few.
    """
    taken = {content(source.metadata) for source in held_out if _is_record(source)}
    return [source for tag, count in tags.items() for source in _drawn(tag, count, seed, taken, key)]


def _is_record(source: Source) -> bool:
    """Whether a prompt carries a GenEval record."""
    try:
        geneval_record(source)
    except BadPrompt:
        return False
    return True


def _drawn(tag: str, count: int, seed: int, taken: set[Any], entry: str) -> list[Source]:
    """``count`` prompts of a tag in a seeded order of all of them, past those that are taken."""
    sizes = _CHOICES[tag]
    seen = set(taken)
    sources = list[Source]()
    for number in permutation(math.prod(sizes), seed, "prompts", tag):
        if len(sources) == count:
            break
        made = MAKERS[tag](*_digits(number, sizes))
        if made is None:
            continue
        words, include, exclude = made
        key = content({"include": include})
        if key in seen:
            continue
        seen.add(key)
        prompt = f"a photo of {words}"
        record = {"tag": tag, "include": include} | ({"exclude": exclude} if exclude else {}) | {"prompt": prompt}
        sources.append(Source(prompt, tag, record, f"generated {tag} {len(sources) + 1}"))
    if len(sources) < count:
        message = f"only {len(sources)} are left beside the evaluation prompts"
        raise UserError(f"{entry}.tags.{tag}: {count}, but {message}")
    return sources


def content(record: Mapping[str, Any] | None) -> Any:
    """What a GenEval record asks for, as a value to compare: objects with their numbers and colours, and relations, in
    whatever order and words ("a dog left of a cat" is "a cat right of a dog")."""
    items = (record or {}).get("include", [])
    objects = sorted((item["class"], item["count"], item.get("color", "")) for item in items)
    relations = sorted(_relation(item, items) for item in items if item.get("position"))
    return tuple(objects), tuple(relations)


def _relation(item: Item, items: list[Item]) -> tuple[str, str, str]:
    """(relation, subject, reference), with "left of" for "right of" and "above" for "below"."""
    relation, reference = item["position"]
    pair = item["class"], items[reference]["class"]
    return (_MIRRORED[relation], *pair[::-1]) if relation in _MIRRORED else (relation, *pair)


def _digits(number: int, sizes: tuple[int, ...]) -> list[int]:
    """``number`` in the mixed radix ``sizes``, the last digit the fastest."""
    digits = []
    for size in reversed(sizes):
        number, digit = divmod(number, size)
        digits.append(digit)
    return digits[::-1]


def with_article(words: str) -> str:
    """ "a dog", "an umbrella"."""
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def plural(name: str) -> str:
    """ "dogs", "benches", "knives"."""
    return _PLURALS.get(name) or name + ("es" if name.endswith(("s", "sh", "ch", "x")) else "s")


def _single(a: int) -> PromptParts:
    return with_article(CLASSES[a]), [{"class": CLASSES[a], "count": 1}], []


def _two(a: int, b: int) -> PromptParts | None:
    names = CLASSES[a], CLASSES[b]
    if a == b:
        return None
    return " and ".join(map(with_article, names)), [{"class": name, "count": 1} for name in names], []


def _counting(n: int, a: int) -> PromptParts:
    number = n + 2
    name = CLASSES[a]
    words = f"{NUMBERS[number]} {plural(name)}"
    return words, [{"class": name, "count": number}], [{"class": name, "count": number + 1}]


def _colors(c: int, a: int) -> PromptParts:
    name = COLORED[a]
    color = COLORS[c]
    return with_article(f"{color} {name}"), [{"class": name, "count": 1, "color": color}], []


def _position(a: int, b: int, r: int) -> PromptParts | None:
    subject = CLASSES[a]
    reference = CLASSES[b]
    relation = RELATIONS[r]
    if a == b:
        return None
    include = [{"class": reference, "count": 1}, {"class": subject, "count": 1, "position": [relation, 0]}]
    return f"{with_article(subject)} {relation} {with_article(reference)}", include, []


def _color_attr(a: int, b: int, c: int, d: int) -> PromptParts | None:
    if a == b or c == d:
        return None
    pairs = (COLORS[c], COLORED[a]), (COLORS[d], COLORED[b])
    words = " and ".join(with_article(f"{color} {name}") for color, name in pairs)
    return words, [{"class": name, "count": 1, "color": color} for color, name in pairs], []


MAKERS: dict[str, Callable[..., PromptParts | None]] = {
    "single_object": _single,
    "two_object": _two,
    "counting": _counting,
    "colors": _colors,
    "position": _position,
    "color_attr": _color_attr,
}
