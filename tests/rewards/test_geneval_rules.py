"""GenEval's rules against hand-made detections: all six tags, both verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from rtdmd.common.errors import UserError
from rtdmd.rewards.geneval_rules import (
    CLASSES,
    COLOURS,
    MAX_OBJECTS,
    Box,
    Found,
    SoftParts,
    Spec,
    Verdict,
    Wanted,
    by_class,
    judge,
    parse,
    relations,
)

LEFT, RIGHT, TOP, BOTTOM = (0, 40, 20, 60), (80, 40, 100, 60), (40, 0, 60, 20), (40, 80, 60, 100)


def thing(name: str, confidence: float = 0.95, box: Box = LEFT, index: int = 0) -> Found:
    return Found(name, confidence, box, index)


def verdict(
    record: dict[str, Any],
    found: Sequence[Found],
    colours: Mapping[int, str] | None = None,
    soft_parts: SoftParts = "fixed",
) -> Verdict:
    """The record's verdict; ``colours``: of each object, by index."""

    def colours_of(name: str, things: Sequence[Found]) -> list[str]:
        assert colours is not None and all(t.name == name for t in things)
        return [colours[t.index] for t in things]

    return judge(parse(record, "p"), found, colours_of, soft_parts)


SINGLE = {"tag": "single_object", "include": [{"class": "cat", "count": 1}], "prompt": "a photo of a cat"}
TWO = {"tag": "two_object", "include": [{"class": "cat", "count": 1}, {"class": "dog", "count": 1}]}
COUNTING = {
    "tag": "counting",
    "include": [{"class": "cat", "count": 3}],
    "exclude": [{"class": "cat", "count": 4}],
}
COLORS = {"tag": "colors", "include": [{"class": "car", "count": 1, "color": "red"}]}
POSITION = {
    "tag": "position",
    "include": [{"class": "dog", "count": 1}, {"class": "cat", "count": 1, "position": ["left of", 0]}],
}
COLOR_ATTR = {
    "tag": "color_attr",
    "include": [{"class": "car", "count": 1, "color": "red"}, {"class": "cup", "count": 1, "color": "blue"}],
}


def test_single_object() -> None:
    assert verdict(SINGLE, [thing("cat", 0.31)]) == Verdict(True, (1.0,))
    for nothing in ([], [thing("cat", 0.3)], [thing("dog")]):
        assert verdict(SINGLE, nothing) == Verdict(False, (0.0,), ("expected cat>=1, found 0",))
    two = verdict(SINGLE, [thing("cat"), thing("cat")])
    assert two.correct and two.soft == 0  # the benchmark asks for at least one, the soft score for exactly one
    assert verdict(SINGLE, [thing("cat")] * 5).soft == 0  # and never goes below 0


def test_two_objects() -> None:
    both = verdict(TWO, [thing("cat"), thing("dog"), thing("bear")])
    assert both.correct and both.soft == 1
    one = verdict(TWO, [thing("dog")])
    assert not one.correct and one.parts == (0, 1) and one.soft == 0.5
    assert one.reasons == ("expected cat>=1, found 0",)


@pytest.mark.parametrize(
    ("number", "correct", "soft"), [(0, False, 0), (2, False, 2 / 3), (3, True, 1), (4, False, 2 / 3), (7, False, 0)]
)
def test_counting_wants_the_number_and_excludes_more(number: int, correct: bool, soft: float) -> None:
    found = verdict(COUNTING, [thing("cat", 0.91)] * number)
    assert found.correct is correct and found.soft == pytest.approx(soft)


def test_counting_counts_only_what_the_detector_is_sure_of() -> None:
    sure, unsure = [thing("cat", 0.91)] * 3, [thing("cat", 0.9)] * 2
    assert verdict(COUNTING, sure + unsure).correct
    assert not verdict(COUNTING, sure[:2] + unsure).correct
    assert not verdict({**COUNTING, "tag": "single_object"}, sure + unsure).correct  # elsewhere 0.3 is enough


def test_the_excluded_class_may_be_another_one() -> None:
    record = {**SINGLE, "exclude": [{"class": "dog", "count": 1}]}
    assert verdict(record, [thing("cat")]).correct
    banned = verdict(record, [thing("cat"), thing("dog")])
    assert not banned.correct and banned.reasons == ("expected dog<1, found 1",)


def test_colours_are_those_of_the_most_confident_objects() -> None:
    assert verdict(COLORS, [thing("car")], {0: "red"}) == Verdict(True, (1.0, 1.0))
    wrong = verdict(COLORS, [thing("car")], {0: "blue"})
    assert not wrong.correct and wrong.parts == (1, 0)
    assert wrong.reasons == ("expected red car>=1, found blue",)
    cars = [thing("car", 0.5, index=0), thing("car", 0.8, index=1)]
    assert verdict(COLORS, cars, {0: "blue", 1: "red"}).correct
    assert not verdict(COLORS, cars, {0: "red", 1: "blue"}).correct
    assert verdict(COLORS, [], {}).parts == (0, 0)


def test_a_share_of_the_colours_is_a_share_of_the_part() -> None:
    record = {"tag": "colors", "include": [{"class": "car", "count": 2, "color": "red"}]}
    half = verdict(record, [thing("car", index=0), thing("car", index=1)], {0: "red", 1: "green"})
    assert not half.correct and half.parts == (1, 0.5)


def test_colours_bind_to_their_objects() -> None:
    things = [thing("car", index=0), thing("cup", index=1)]
    assert verdict(COLOR_ATTR, things, {0: "red", 1: "blue"}) == Verdict(True, (1.0,) * 4)
    swapped = verdict(COLOR_ATTR, things, {0: "blue", 1: "red"})
    assert not swapped.correct and swapped.parts == (1, 0, 1, 0)
    assert verdict(COLOR_ATTR, things, {0: "red", 1: "red"}).parts == (1, 1, 1, 0)


def test_a_right_position_scores_one_and_a_wrong_one_nothing_for_its_part() -> None:
    right = verdict(POSITION, [thing("dog", box=RIGHT), thing("cat", box=LEFT)])
    assert right.correct and right.parts == (1, 1, 1)
    wrong = verdict(POSITION, [thing("dog", box=LEFT), thing("cat", box=RIGHT)])
    assert not wrong.correct and wrong.parts == (1, 1, 0)  # the public code: (1, 1, 0, 1)
    assert wrong.soft == pytest.approx(2 / 3) and wrong.reasons == ("expected cat left of target",)


def test_a_position_needs_its_target() -> None:
    no_target = verdict(POSITION, [thing("cat", box=LEFT)])
    assert not no_target.correct and no_target.parts == (0, 1, 0)
    two_targets = verdict(POSITION, [thing("dog", 0.9, RIGHT), thing("dog", 0.8, LEFT), thing("cat", box=LEFT)])
    assert two_targets.correct  # the benchmark looks at the more confident dog
    assert two_targets.parts == (0, 1, 0)  # the soft score wanted one dog


def test_a_position_holds_for_every_pair() -> None:
    record = {
        "tag": "position",
        "include": [{"class": "dog", "count": 2}, {"class": "cat", "count": 1, "position": ["left of", 0]}],
    }
    cat = thing("cat", box=(50, 40, 60, 60))
    assert verdict(record, [thing("dog", box=RIGHT), thing("dog", box=(80, 50, 100, 60)), cat]).soft == 1
    assert verdict(record, [thing("dog", box=RIGHT), thing("dog", box=LEFT), cat]).parts == (1, 1, 0)


def test_a_wrong_colour_takes_its_position_with_it() -> None:
    record = {
        "tag": "position",
        "include": [
            {"class": "dog", "count": 1, "color": "brown"},
            {"class": "cat", "count": 1, "color": "white", "position": ["left of", 0]},
        ],
    }
    things = [thing("dog", box=RIGHT, index=0), thing("cat", box=LEFT, index=1)]
    assert verdict(record, things, {0: "brown", 1: "white"}).parts == (1, 1, 1, 1, 1)
    assert verdict(record, things, {0: "brown", 1: "black"}).parts == (1, 1, 1, 0, 0)
    assert verdict(record, things, {0: "black", 1: "white"}).parts == (1, 0, 1, 1, 0)  # the target is not a brown dog


COLOURED = {
    "tag": "position",
    "include": [
        {"class": "dog", "count": 1},
        {"class": "cat", "count": 1, "color": "white", "position": ["left of", 0]},
    ],
}


@pytest.mark.parametrize(
    ("record", "found", "colours", "parts"),
    [
        (SINGLE, [thing("cat")], {}, (1,)),
        (SINGLE, [thing("cat")] * 5, {}, (-3,)),  # below 0
        (POSITION, [thing("dog", box=RIGHT), thing("cat", box=LEFT)], {}, (1, 1, 1)),
        (POSITION, [thing("dog", box=LEFT), thing("cat", box=RIGHT)], {}, (1, 1, 0, 1)),  # a 1 after the 0
        (POSITION, [thing("cat", box=LEFT)], {}, (0, 1, 0)),  # no target: the 0 alone
        (POSITION, [thing("dog", box=RIGHT)], {}, (1, 0, 0)),
        (COLOURED, [thing("dog", box=RIGHT), thing("cat", box=LEFT, index=1)], {1: "white"}, (1, 1, 1, 1)),
        (COLOURED, [thing("dog", box=RIGHT), thing("cat", box=LEFT, index=1)], {1: "black"}, (1, 1, 0)),  # no position
        (COLOURED, [thing("dog", box=RIGHT)], {}, (1, 0, 0)),  # one 0 for colour and position
        (COLOR_ATTR, [thing("car"), thing("cup", index=1)], {0: "red", 1: "red"}, (1, 1, 1, 0)),
    ],
)
def test_published_parts(
    record: dict[str, Any], found: list[Found], colours: dict[int, str], parts: tuple[float, ...]
) -> None:
    """As the public code counts them, which its own function confirmed on 20 000 random prompts and detections."""
    published = verdict(record, found, colours, "published")
    assert published.parts == parts
    assert published.correct == verdict(record, found, colours).correct  # the benchmark's verdict is another matter
    assert published.exact == verdict(record, found, colours).exact == (min(parts) == 1)


@pytest.mark.parametrize(
    ("box", "names"),
    [(LEFT, {"left of"}), (RIGHT, {"right of"}), (TOP, {"above"}), (BOTTOM, {"below"})],
)
def test_the_four_relations(box: Box, names: set[str]) -> None:
    middle = (40, 40, 60, 60)
    assert relations(box, middle) == names


def test_a_diagonal_has_two_relations_until_one_axis_wins() -> None:
    """Offset (-d, -d e): an axis counts while its share of the length, less the margin, is above one half."""
    assert relations((0, 0, 1, 1), (100, 100, 101, 101)) == {"left of", "above"}
    assert relations((0, 0, 1, 1), (100, 60, 101, 61)) == {"left of", "above"}  # (60 - 0.2) / 116.6 = 0.513
    assert relations((0, 0, 1, 1), (100, 58, 101, 59)) == {"left of"}  # (58 - 0.2) / 115.6 = 0.49997


@pytest.mark.parametrize(("offset", "names"), [(4.0, set()), (7.9, set()), (8.1, {"right of"}), (20.0, {"right of"})])
def test_the_margin_is_a_tenth_of_both_sizes(offset: float, names: set[str]) -> None:
    """Widths 10 and 30 give a margin of 4 pixels; what is left of the offset must be more than half of it: above 8."""
    assert relations((10 + offset, 0, 20 + offset, 10), (0, 0, 30, 10)) == names


def test_no_offset_is_no_relation() -> None:
    assert relations(LEFT, LEFT) == set()


def test_at_most_sixteen_of_a_class_the_most_confident_first() -> None:
    found = [thing("cat", 0.4 + 0.01 * i, index=i) for i in range(20)] + [thing("dog", 0.2), thing("bear", 0.5)]
    groups = by_class(found, 0.3)
    assert [t.index for t in groups["cat"]] == list(range(19, 19 - MAX_OBJECTS, -1))
    assert not groups["dog"] and len(groups["bear"]) == 1
    many = {
        "tag": "single_object",
        "include": [{"class": "cat", "count": 1}],
        "exclude": [{"class": "cat", "count": 17}],
    }
    assert verdict(many, found).correct  # so nothing can be excluded from the seventeenth on


def test_records_as_geneval_writes_them() -> None:
    spec = parse(POSITION, "p")
    assert spec == Spec("position", (Wanted("dog", 1), Wanted("cat", 1, None, "left of", 0)))
    assert spec.threshold == 0.3 and parse(COUNTING, "p").threshold == 0.9
    assert parse(COUNTING, "p").exclude == (Wanted("cat", 4),)
    assert len(set(CLASSES)) == 80 and (CLASSES[0], CLASSES[64], CLASSES[79]) == (
        "person",
        "computer mouse",
        "toothbrush",
    )
    assert len(COLOURS) == 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tag": "colours"}, r"'p' has metadata tag: 'colours'; allowed: single_object"),
        ({"include": []}, "include: 'nothing'"),
        ({"include": "cat"}, "include: 'cat'; allowed: a list of objects"),
        ({"include": [{"class": "mouse", "count": 1}]}, "class: 'mouse'; allowed: person"),
        ({"include": [{"class": "cat"}]}, "count: None; allowed: a whole number from 1"),
        ({"include": [{"class": "cat", "count": 0}]}, "count: 0"),
        ({"include": [{"class": "cat", "count": 1, "color": "grey"}]}, "color: 'grey'; allowed: red"),
        ({"include": [{"class": "cat", "count": 1, "position": ["left of", 0]}]}, "number of an earlier requirement"),
        ({"include": [*SINGLE["include"], {"class": "cat", "count": 1, "position": ["near", 0]}]}, "position: 'near'"),
        ({"exclude": [{"class": "cat", "count": 1, "color": 3}]}, "color: 3"),
    ],
)
def test_records_that_say_something_else_are_errors(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse({**SINGLE, **change}, "p")
