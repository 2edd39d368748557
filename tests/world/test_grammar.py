"""The world's captions: how many, in GenEval's format, and what is held out stays out of everything that trains."""

from __future__ import annotations

from collections import Counter

import pytest

from rtdmd.common.rng import numpy_generator
from rtdmd.world.grammar import HELDOUT, PLURALS, RELATIONS, TAGS, auxiliary, captions, captions_of, words
from tools.world.text import HELDOUT_PROMPTS, QUESTIONS, in_text_order, labels, random_caption

SIZES = {"single_object": 4, "two_object": 12, "counting": 12, "colors": 16, "position": 48, "color_attr": 192}


def test_284_distinct_captions_with_their_split() -> None:
    assert len(captions()) == len({caption.prompt for caption in captions()}) == 284
    assert Counter(caption.tag for caption in captions()) == SIZES
    assert tuple(SIZES) == TAGS
    assert Counter(caption.tag for caption in captions_of("heldout")) == HELDOUT
    assert (len(captions_of("train")), len(captions_of("heldout"))) == (246, 38)


def test_nothing_that_trains_sees_a_held_out_caption() -> None:
    held = {caption.prompt for caption in captions_of("heldout")}
    assert held == HELDOUT_PROMPTS
    rng = numpy_generator(0, "test")
    drawn = {random_caption(rng)[0] for _ in range(3000)}
    assert len(drawn) > 1500
    assert not held & drawn
    assert not held & {caption.prompt for caption in captions_of("train")}


def test_the_auxiliary_captions_are_new_and_have_tags_of_their_own() -> None:
    mine = {caption.prompt for caption in auxiliary()}
    assert len(mine) == len(auxiliary()) == 3 * 4 * 4 + 12 * 4 * 16 == 816
    assert not mine & {caption.prompt for caption in captions()}
    assert not {caption.tag for caption in auxiliary()} & set(TAGS)
    assert {word for caption in auxiliary() for word in caption.prompt.split()} <= set(words())


@pytest.mark.parametrize(
    ("prompt", "record"),
    [
        ("a photo of a circle", {"tag": "single_object", "include": [{"class": "circle", "count": 1}]}),
        (
            "a photo of three squares",
            {
                "tag": "counting",
                "include": [{"class": "square", "count": 3}],
                "exclude": [{"class": "square", "count": 4}],
            },
        ),
        (
            "a photo of a circle left of a cross",
            {
                "tag": "position",
                "include": [
                    {"class": "cross", "count": 1},
                    {"class": "circle", "count": 1, "position": ["left of", 0]},
                ],
            },
        ),
        (
            "a photo of a red circle and a blue cross",
            {
                "tag": "color_attr",
                "include": [
                    {"class": "circle", "count": 1, "color": "red"},
                    {"class": "cross", "count": 1, "color": "blue"},
                ],
            },
        ),
    ],
)
def test_metadata_is_in_genevals_format(prompt: str, record: dict[str, object]) -> None:
    found = next(caption for caption in captions() if caption.prompt == prompt).metadata()
    assert found == record | {"prompt": prompt}


def test_a_record_is_a_copy() -> None:
    caption = captions()[0]
    caption.metadata()["include"][0]["count"] = 9
    assert caption.metadata()["include"][0]["count"] == 1


def test_labels_answer_every_question() -> None:
    """Shapes circle 0 to cross 3, another noun 4, no noun 5; colours red 0 to yellow 3, not said 4."""
    pair = [
        {"class": "circle", "count": 1, "position": ["left of", 1]},
        {"class": "cross", "count": 1, "color": "blue"},
    ]
    sides, numbers, colors = [0, 3, 5, 5], [1, 0, 0, 1], [4, 4, 4, 2]
    assert labels(pair) == [*sides, *numbers, *colors, 1, 1, 4, 2]
    assert list(QUESTIONS.values()) == [6] * 4 + [5] * 12
    one = labels([{"class": "square", "count": 4, "color": "red"}])
    assert one == [5, 5, 5, 5, 0, 4, 0, 0, 4, 0, 4, 4, 4, 0, 0, 4]
    other = [{"class": "bird", "count": 2, "position": ["above", 1]}, {"class": "circle", "count": 1}]
    assert labels(other) == [5, 5, 4, 0, 1, 0, 0, 0, 4, 4, 4, 4, 2, 1, 4, 4]


def test_a_captions_entries_in_text_order() -> None:
    for caption in captions():
        nouns = in_text_order(caption)
        assert len(nouns) == len(caption.include)
        places = [caption.prompt.index(item["class"]) for item in nouns]
        assert places == sorted(places)
        assert all("position" not in item for item in nouns[1:])


def test_a_random_caption_says_what_its_entries_say() -> None:
    rng = numpy_generator(1, "test")
    seen: Counter[str] = Counter()
    for _ in range(300):
        prompt, nouns = random_caption(rng)
        places = [prompt.index(item["class"]) for item in nouns]
        assert places == sorted(places) and len(nouns) in (1, 2)
        for item in nouns:
            number = {1: "a", 2: "two", 3: "three", 4: "four"}[item["count"]]
            ending = "" if item["count"] == 1 else PLURALS.get(item["class"], "s").removeprefix(item["class"])
            words_of = [number, *([item["color"]] if "color" in item else []), item["class"] + ending]
            assert " ".join(words_of) in prompt
        relation = nouns[0].get("position", ["and" if len(nouns) == 2 else "alone"])[0]
        assert relation == "alone" or f" {relation} " in prompt
        seen[relation] += 1
    assert set(seen) == {"alone", "and", *RELATIONS} and min(seen.values()) > 10
