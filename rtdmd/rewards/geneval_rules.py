"""GenEval's rules (arXiv 2310.11513) as pure functions: what a prompt asks for, against what a detector found.

A prompt's record is GenEval's JSON: {"tag", "include": [{"class", "count", "color"?, "position"?: [relation, index of
an earlier requirement]}], "exclude"?: [{"class", "count"}], "prompt"}. Two verdicts come out of one reading:

- `correct` is the benchmark's own: of each class at least `count` objects, and it is the `count` most confident ones
  whose colours and positions are looked at; of an excluded class fewer than `count` objects.
- `soft` is the reward that Flow-GRPO and RTDMD train on: the mean over parts, one for each number, colour and position
  asked for. Here a number must be met exactly, and all objects of the class are looked at. The parts are those of the
  public code (`published`), or `fixed`, which are ours: a wrong position scores 0 for its part, where the public code
  appends a 1 to the 0 and so gives one half; a number's part is at least 0, where the public code goes below (five
  objects for one: -3); and a requirement has the same parts whatever is found, where the public code leaves the
  position's out when the colour is wrong and counts both once when the number is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from rtdmd.common.errors import UserError
from rtdmd.common.sums import sum_in_order

THRESHOLD = 0.3  # detections count above it
COUNTING_THRESHOLD = 0.9  # for the tag `counting`
MAX_OBJECTS = 16  # of one class, the most confident
MARGIN = 0.1  # of the two objects' sizes: offsets within it have no direction
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
RELATIONS = ("left of", "right of", "above", "below")
TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
# COCO's 80 classes in the detector's order, under GenEval's names (its mouse, remote and keyboard say what they are)
CLASSES = (
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light"),
    *("fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow"),
    *("elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee"),
    *("skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard"),
    *("tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple"),
    *("sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch"),
    *("potted plant", "bed", "dining table", "toilet", "tv", "laptop", "computer mouse", "tv remote"),
    *("computer keyboard", "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock"),
    *("vase", "scissors", "teddy bear", "hair drier", "toothbrush"),
)

SoftParts = Literal["fixed", "published"]
Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels


@dataclass(frozen=True)
class Found:
    """An object that the detector found: its class, confidence in [0, 1] and box; ``index`` leads to its mask."""

    name: str
    confidence: float
    box: Box
    index: int = 0


@dataclass(frozen=True)
class Wanted:
    """``count`` objects of a class, of a colour, each in a relation to each object of requirement ``target``."""

    name: str
    count: int
    colour: str | None = None
    relation: str | None = None
    target: int = 0


@dataclass(frozen=True)
class Spec:
    """What a prompt asks for: all of ``include``, and of each class in ``exclude`` fewer than its count."""

    tag: str
    include: tuple[Wanted, ...]
    exclude: tuple[Wanted, ...] = ()

    @property
    def threshold(self) -> float:
        """Confidence above which a detection counts."""
        return COUNTING_THRESHOLD if self.tag == "counting" else THRESHOLD


@dataclass(frozen=True)
class Verdict:
    """``correct``: GenEval's verdict. ``parts``: the soft score's, at most 1. ``reasons``: what was wrong, in words."""

    correct: bool
    parts: tuple[float, ...]
    reasons: tuple[str, ...] = field(default=())

    @property
    def soft(self) -> float:
        """Mean of the parts."""
        return sum_in_order(self.parts) / len(self.parts)

    @property
    def exact(self) -> bool:
        """The public code's ``strict_accuracy``: every part whole, so no object of a class too many either."""
        return all(part == 1 for part in self.parts)


ColoursOf = Callable[[str, Sequence[Found]], Sequence[str]]
"""(class, objects) -> the colour of each; asked only where a record asks for a colour."""


def parse(record: Mapping[str, Any], prompt: str) -> Spec:
    """A prompt's record, checked. UserError names the prompt and the key."""
    tag = _one_of(record.get("tag"), TAGS, "tag", prompt)
    include = tuple(_wanted(item, i, prompt) for i, item in enumerate(_items(record, "include", prompt)))
    exclude = tuple(_wanted(item, 0, prompt) for item in _items(record, "exclude", prompt))
    if not include:
        raise _fault(prompt, "include", "nothing", "at least one object")
    return Spec(tag, include, exclude)


def _wanted(item: Mapping[str, Any], place: int, prompt: str) -> Wanted:
    """One requirement, the ``place``-th of its list: it may refer to those before it."""
    name = _one_of(item.get("class"), CLASSES, "class", prompt)
    count = item.get("count")
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise _fault(prompt, "count", count, "a whole number from 1")
    colour = _one_of(item["color"], COLOURS, "color", prompt) if "color" in item else None
    if "position" not in item:
        return Wanted(name, count, colour)
    match item["position"]:
        case [str(relation), int(target)] if 0 <= target < place:
            return Wanted(name, count, colour, _one_of(relation, RELATIONS, "position", prompt), target)
    raise _fault(prompt, "position", item["position"], "[relation, number of an earlier requirement, from 0]")


def _items(record: Mapping[str, Any], key: str, prompt: str) -> list[Mapping[str, Any]]:
    items = record.get(key, [])
    if not isinstance(items, list) or not all(isinstance(item, Mapping) for item in items):
        raise _fault(prompt, key, items, "a list of objects")
    return items


def _one_of(value: Any, allowed: Sequence[str], key: str, prompt: str) -> str:
    if value not in allowed:
        raise _fault(prompt, key, value, ", ".join(allowed))
    return str(value)


def _fault(prompt: str, key: str, value: Any, allowed: str) -> UserError:
    return UserError(f"reward geneval: the prompt {prompt!r} has metadata {key}: {value!r}; allowed: {allowed}")


def by_class(found: Sequence[Found], threshold: float) -> dict[str, list[Found]]:
    """Objects above ``threshold`` by class, the most confident first, at most MAX_OBJECTS of each."""
    groups: dict[str, list[Found]] = {}
    for thing in sorted(found, key=lambda thing: -thing.confidence):
        group = groups.setdefault(thing.name, [])
        if thing.confidence > threshold and len(group) < MAX_OBJECTS:
            group.append(thing)
    return groups


def relations(a: Box, b: Box) -> set[str]:
    """Where ``a`` lies from ``b``: none, one or two of RELATIONS (pixels grow to the right and downwards).

    The offset of the centres, shortened along each axis by MARGIN times the sum of the sizes along it, must make up
    more than half of the unshortened offset's length.
    """
    offsets = [(a[i] + a[i + 2]) / 2 - (b[i] + b[i + 2]) / 2 for i in (0, 1)]
    margins = [MARGIN * (abs(a[i + 2] - a[i]) + abs(b[i + 2] - b[i])) for i in (0, 1)]
    left_over = [max(abs(offset) - margin, 0.0) for offset, margin in zip(offsets, margins, strict=True)]
    if max(left_over) < 1e-3:  # pixels; as in GenEval
        return set()
    length = (offsets[0] ** 2 + offsets[1] ** 2) ** 0.5
    pairs = (("left of", "right of"), ("above", "below"))
    return {
        pair[offset > 0] for pair, offset, rest in zip(pairs, offsets, left_over, strict=True) if rest / length > 0.5
    }


def judge(spec: Spec, found: Sequence[Found], colours_of: ColoursOf, soft_parts: SoftParts = "fixed") -> Verdict:
    """Both verdicts on one image."""
    groups = by_class(found, spec.threshold)
    correct, reasons = _correct(spec, groups, colours_of)
    parts = _parts if soft_parts == "fixed" else _published_parts
    return Verdict(correct, tuple(parts(spec, groups, colours_of)), tuple(reasons))


def _correct(spec: Spec, groups: Mapping[str, list[Found]], colours_of: ColoursOf) -> tuple[bool, list[str]]:
    """The benchmark's verdict, and why not. A requirement that fails is no target for a position."""
    reasons: list[str] = []
    met: list[list[Found] | None] = []
    for want in spec.include:
        things = groups.get(want.name, [])[: want.count]
        reason = _wrong(want, things, met, colours_of)
        met.append(things if reason is None else None)
        reasons += [reason] if reason is not None else []
    for ban in spec.exclude:
        number = len(groups.get(ban.name, []))
        if number >= ban.count:
            reasons.append(f"expected {ban.name}<{ban.count}, found {number}")
    return not reasons, reasons


def _wrong(want: Wanted, things: list[Found], met: Sequence[list[Found] | None], colours_of: ColoursOf) -> str | None:
    """What is wrong with the chosen ``things``; None where they are as wanted."""
    if len(things) < want.count:
        return f"expected {want.name}>={want.count}, found {len(things)}"
    if want.colour is not None:
        colours = colours_of(want.name, things)
        if any(colour != want.colour for colour in colours):
            return f"expected {want.colour} {want.name}>={want.count}, found {', '.join(colours)}"
    if want.relation is not None and not _placed(want.relation, things, met[want.target]):
        return f"expected {want.name} {want.relation} target"
    return None


def _placed(relation: str, things: Sequence[Found], targets: Sequence[Found] | None) -> bool:
    """Whether each of the things has the relation to each of the targets; not where the targets were not met."""
    return targets is not None and all(relation in relations(a.box, b.box) for a in things for b in targets)


def _parts(spec: Spec, groups: Mapping[str, list[Found]], colours_of: ColoursOf) -> list[float]:
    """The soft score's parts: number, colour, position of each requirement, where asked for."""
    parts: list[float] = []
    met: list[list[Found] | None] = []
    for want in spec.include:
        things = groups.get(want.name, [])
        own = [max(0.0, 1 - abs(want.count - len(things)) / want.count)]
        exact = len(things) == want.count
        if want.colour is not None:
            right = list(colours_of(want.name, things)).count(want.colour) if exact else 0
            own.append(right / want.count)
        if want.relation is not None:
            ready = exact and all(part == 1 for part in own)
            own.append(float(ready and _placed(want.relation, things, met[want.target])))
        met.append(things if all(part == 1 for part in own) else None)
        parts += own
    return parts


def _published_parts(spec: Spec, groups: Mapping[str, list[Found]], colours_of: ColoursOf) -> list[float]:
    """The soft score's parts as the public code counts them: see the module."""
    parts: list[float] = []
    met: list[list[Found] | None] = []
    for want in spec.include:
        things = groups.get(want.name, [])
        parts.append(1 - abs(want.count - len(things)) / want.count)
        whole = len(things) == want.count
        if not whole and (want.colour is not None or want.relation is not None):
            parts.append(0.0)
        if whole and want.colour is not None:
            right = list(colours_of(want.name, things)).count(want.colour)
            parts.append(right / want.count)
            whole = right == want.count
        if whole and want.relation is not None:
            targets = met[want.target]
            whole = _placed(want.relation, things, targets)
            parts += [] if whole else [0.0]
            parts += [1.0] if targets is not None else []
        met.append(things if whole else None)
    return parts
