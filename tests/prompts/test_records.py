"""Prompts of a run: distinct, disjoint, numbered, by source; what becomes of faulty ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rtdmd.common.errors import UserError
from rtdmd.common.files import write_jsonl
from rtdmd.prompts.records import BadPrompt, Faults, Prompt, Source, make_sets, read_prompts
from rtdmd.prompts.sources.world import world_sources

RECORD = {"tag": "counting", "include": [{"class": "dog", "count": 2}], "prompt": "two dogs"}


def source(prompt: str, where: str = "f:1", tag: str | None = None, metadata: dict[str, Any] | None = None) -> Source:
    return Source(prompt, tag, metadata, where)


def test_sets_are_distinct_numbered_and_disjoint() -> None:
    train = [[source("a dog"), source("a cat"), source("a dog")], [source("a cow"), source("a cat")]]
    sets = make_sets(train, [[source("two dogs", metadata=RECORD)]], Faults())
    assert [(p.id, p.prompt) for p in sets.train] == [(0, "a dog"), (1, "a cat"), (2, "a cow")]
    assert sets.eval == [Prompt(3, "two dogs", None, RECORD)]
    assert sets.duplicates == {"train": [1, 1], "eval": [0]}
    assert sets.ids == {"train": [(0, 2), (2, 3)], "eval": [(3, 4)]}


def test_a_prompt_in_both_sets_is_an_error_or_dropped_from_training() -> None:
    train = [[source("a dog", "train.txt:1"), source("a cat", "train.txt:2")]]
    evaluation = [[source("a cat", "eval.txt:7")]]
    says = (
        r"train\.txt:2: the prompt 'a cat' \(training\) is also at eval\.txt:7 \(evaluation\); take it out of one,"
        r" or set prepare_prompts\.on_bad: drop, which trains without it$"
    )
    with pytest.raises(UserError, match=says):
        make_sets(train, evaluation, Faults())
    faults = Faults(drop=True)
    sets = make_sets(train, evaluation, faults)
    assert [p.prompt for p in sets.train + sets.eval] == ["a dog", "a cat"]
    assert [(d["where"], d["reason"]) for d in faults.dropped] == [("train.txt:2", "overlap")]


@pytest.mark.parametrize(
    ("training", "held_out"),
    [
        ("A Cat", "a cat"),
        (" a\tcat  sits", "a cat sits"),
        ("a cafe\u0301", "a caf\u00e9"),  # decomposed and composed
        ("a\u200b cat\ufe0f", "a cat"),
        ("ａ cat", "a cat"),  # letters of full width
        ("a\u00a0cat", "a cat"),
    ],
)
def test_sets_are_disjoint_as_encoders_read_them(training: str, held_out: str) -> None:
    train = [[source("a dog"), source(training, "t:2"), source(training + "!", "t:3")]]
    evaluation = [[source(held_out)]]
    with pytest.raises(BadPrompt) as caught:
        make_sets(train, evaluation, Faults())
    assert str(caught.value).startswith(
        f"t:2: the prompt {training!r} (training) is also at f:1 (evaluation) as {held_out!r}; "
    )
    faults = Faults(drop=True)
    sets = make_sets(train, evaluation, faults)
    assert [p.prompt for p in sets.train + sets.eval] == ["a dog", training + "!", held_out]
    assert [(d["where"], d["reason"]) for d in faults.dropped] == [("t:2", "overlap")]


def test_how_many_prompts_are_in_both_sets_is_told_at_once() -> None:
    both = [source(f"prompt {i}", f"t:{i}") for i in range(4)]
    with pytest.raises(BadPrompt, match=r"^t:1: .* \(2 more are in both sets\)$"):
        make_sets([both], [both[1:]], Faults())


def test_prompts_of_one_set_that_look_alike_both_stay() -> None:
    sets = make_sets([[source("a dog"), source("A dog")]], [[source("a cat"), source("a  cat")]], Faults())
    assert len(sets.train) == len(sets.eval) == 2


def test_one_prompt_with_two_metadata_is_an_error_or_the_later_one_is_dropped() -> None:
    train = [[source("two dogs", "f:1", metadata=RECORD), source("two dogs", "f:2", metadata={"n": 2})]]
    with pytest.raises(BadPrompt, match="f:2: the prompt 'two dogs' has other metadata than at f:1"):
        make_sets(train, [[source("a cow")]], Faults())
    faults = Faults(drop=True)
    sets = make_sets(train, [[source("a cow")]], faults)
    assert sets.train == [Prompt(0, "two dogs", None, RECORD)] and sets.duplicates["train"] == [0]
    assert [d["reason"] for d in faults.dropped] == ["conflict"]


def test_nothing_left_is_an_error() -> None:
    with pytest.raises(UserError, match="no training prompt is left"):
        make_sets([[source("a cat")]], [[source("a cat")]], Faults(drop=True))


def test_the_world_gives_all_its_captions_once() -> None:
    from rtdmd.world.grammar import captions

    sets = make_sets([world_sources("train")], [world_sources("heldout")], Faults())
    assert len(sets.train) + len(sets.eval) == len(captions()) == 284
    assert sets.duplicates == {"train": [0], "eval": [0]}
    assert all(p.metadata is not None and p.metadata["prompt"] == p.prompt and p.tag for p in sets.train + sets.eval)
    assert [p.id for p in sets.train + sets.eval] == list(range(284))


def test_rows_survive_the_file(tmp_path: Path) -> None:
    prompts = [Prompt(0, "a café", None, None), Prompt(1, "two dogs", "counting", RECORD)]
    write_jsonl(tmp_path / "p.jsonl", [prompt.row() for prompt in prompts])
    assert read_prompts(tmp_path / "p.jsonl") == prompts
