"""GenEval-style prompts: wording, records, the seed, and that nothing of the evaluation set is drawn."""

from __future__ import annotations

import pytest

from rtdmd.common.errors import UserError
from rtdmd.prompts.files import checked
from rtdmd.prompts.generate import CLASSES, MAKERS, content, generated_sources, plural, with_article
from rtdmd.prompts.records import ErrorPolicy, Source
from rtdmd.prompts.sources.generated import TAGS
from rtdmd.prompts.sources.geneval import geneval_record

ALL = dict.fromkeys(MAKERS, 40)
assert tuple(MAKERS) == TAGS


def test_there_are_eighty_classes() -> None:
    assert len(set(CLASSES)) == len(CLASSES) == 80
    assert [plural(n) for n in ("dog", "bench", "bus", "toothbrush", "knife", "sheep", "wine glass", "sandwich")] == [
        "dogs",
        "benches",
        "buses",
        "toothbrushes",
        "knives",
        "sheep",
        "wine glasses",
        "sandwiches",
    ]
    assert (with_article("orange"), with_article("tv")) == ("an orange", "a tv")


def test_records_say_what_the_words_say() -> None:
    sources = generated_sources(ALL, 3, [])
    assert checked(sources, geneval_record, ErrorPolicy()) == sources
    assert len({s.prompt for s in sources}) == len(sources) == 240
    for s in sources:
        assert s.metadata is not None and s.prompt == s.metadata["prompt"] and s.prompt.startswith("a photo of ")
        names = [item["class"] for item in s.metadata["include"]]
        assert len(set(names)) == len(names)
        for item in s.metadata["include"]:
            shown = plural(item["class"]) if item["count"] > 1 else item["class"]
            assert f"{item['color']} {shown}" in s.prompt if "color" in item else shown in s.prompt
    (first, *_) = [s for s in sources if s.tag == "position"]
    reference, subject = first.metadata["include"]
    relation = subject["position"][0]
    assert first.prompt.endswith(f"{relation} {with_article(reference['class'])}")
    (count, *_) = [s for s in sources if s.tag == "counting"]
    assert count.metadata["exclude"][0]["count"] == count.metadata["include"][0]["count"] + 1


def test_the_seed_decides_and_a_longer_draw_begins_alike() -> None:
    first = generated_sources(ALL, 3, [])
    assert generated_sources(ALL, 3, []) == first
    assert generated_sources(ALL, 4, []) != first
    longer = generated_sources({"colors": 50}, 3, [])
    assert longer[:40] == [s for s in first if s.tag == "colors"]


def test_nothing_that_evaluation_asks_for_is_drawn() -> None:
    pair = {"include": [{"class": "dog", "count": 1}, {"class": "cat", "count": 1}]}
    everything = generated_sources({"two_object": 3160}, 0, [])
    held_out = [Source("a dog with a cat", "two_object", pair, "eval"), Source("x", "t", {"include": "y"}, "eval")]
    rest = generated_sources({"two_object": 3159}, 0, held_out)  # what is no GenEval record asks for nothing
    gone = {s.prompt for s in everything} - {s.prompt for s in rest}
    assert len(gone) == 1 and gone <= {"a photo of a dog and a cat", "a photo of a cat and a dog"}
    held_out = generated_sources({"single_object": 75}, 0, [])
    says = r"tags\.single_object: 6, but only 5 are left beside the evaluation prompts"
    with pytest.raises(UserError, match=says):
        generated_sources({"single_object": 6}, 0, held_out)


def test_mirrored_relations_ask_for_the_same() -> None:
    def record(subject: str, relation: str, reference: str) -> dict:
        return {
            "include": [
                {"class": reference, "count": 1},
                {"class": subject, "count": 1, "position": [relation, 0]},
            ]
        }

    assert content(record("dog", "right of", "cat")) == content(record("cat", "left of", "dog"))
    assert content(record("dog", "below", "cat")) == content(record("cat", "above", "dog"))
    assert content(record("dog", "above", "cat")) != content(record("cat", "above", "dog"))
