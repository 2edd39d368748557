"""Prompts of a run: distinct, disjoint, numbered, by source; what becomes of faulty ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rtdmd.common.errors import UserError
from rtdmd.common.files import write_jsonl
from rtdmd.prompts.records import BadPrompt, ErrorPolicy, Prompt, PromptSet, Source, make_sets, read_prompts, read_set
from rtdmd.prompts.sources.world import world_sources

RECORD = {"tag": "counting", "include": [{"class": "dog", "count": 2}], "prompt": "two dogs"}


Groups = list[list[Source]]


def made(train: Groups, evaluation: Groups, policy: ErrorPolicy | None = None) -> tuple[PromptSet, PromptSet]:
    """One set of each kind."""
    both = dict.fromkeys(("train", "heldout"), policy or ErrorPolicy())
    sets = make_sets({"train": train}, {"heldout": evaluation}, both)
    assert list(sets) == ["train", "heldout"]
    return sets["train"], sets["heldout"]


def source(prompt: str, where: str = "f:1", tag: str | None = None, metadata: dict[str, Any] | None = None) -> Source:
    return Source(prompt, tag, metadata, where)


def test_sets_are_distinct_numbered_and_disjoint() -> None:
    train = [[source("a dog"), source("a cat"), source("a dog")], [source("a cow"), source("a cat")]]
    trained, evaluated = made(train, [[source("two dogs", metadata=RECORD)]])
    assert [(p.id, p.prompt, p.set) for p in trained.prompts] == [
        (0, "a dog", "train"),
        (1, "a cat", "train"),
        (2, "a cow", "train"),
    ]
    assert evaluated == PromptSet([Prompt(3, "two dogs", None, RECORD, "heldout")], ids=[(3, 4)], duplicates=[0])
    assert (trained.ids, trained.duplicates) == ([(0, 2), (2, 3)], [1, 1])
    assert {p.prompt: p.times for p in trained.prompts} == {"a dog": 2, "a cat": 2, "a cow": 1}


def test_every_training_set_is_apart_from_every_evaluation_set_and_ids_run_through_all() -> None:
    training = {"one": [[source("a dog"), source("a cow")]], "two": [[source("a cow"), source("A cat", "two:2")]]}
    evaluation = {"a": [[source("a hat"), source("a pen")]], "b": [[source("a cat", "b:1"), source("a hat")]]}
    policy = {name: ErrorPolicy(drop=True) for name in (*training, *evaluation)}
    sets = make_sets(training, evaluation, policy)
    assert {name: [(p.id, p.prompt) for p in found.prompts] for name, found in sets.items()} == {
        "one": [(0, "a dog"), (1, "a cow")],
        "two": [(2, "a cow")],  # the other training set has it too
        "a": [(3, "a hat"), (4, "a pen")],
        "b": [(5, "a cat"), (6, "a hat")],
    }
    assert {p.set for found in sets.values() for p in found.prompts} == set(sets)
    assert {name: len(found.dropped) for name, found in policy.items()} == {"one": 0, "two": 1, "a": 0, "b": 0}
    message = (
        r"^two:2: the prompt 'A cat' of the training set two is also at b:1, in the evaluation set b as 'a cat'; take"
        r" it out of one, or set prepare_prompts\.on_bad: drop, which trains without it$"
    )
    with pytest.raises(BadPrompt, match=message):
        make_sets(training, evaluation, dict.fromkeys(policy, ErrorPolicy()))


def test_a_prompt_in_both_sets_is_an_error_or_dropped_from_training() -> None:
    train = [[source("a dog", "train.txt:1"), source("a cat", "train.txt:2")]]
    evaluation = [[source("a cat", "eval.txt:7")]]
    message = (
        r"train\.txt:2: the prompt 'a cat' of the training set train is also at eval\.txt:7, in the evaluation set"
        r" heldout; take it out of one, or set prepare_prompts\.on_bad: drop, which trains without it$"
    )
    with pytest.raises(UserError, match=message):
        made(train, evaluation)
    policy = ErrorPolicy(drop=True)
    trained, evaluated = made(train, evaluation, policy)
    assert [p.prompt for p in trained.prompts + evaluated.prompts] == ["a dog", "a cat"]
    assert [(d["where"], d["reason"]) for d in policy.dropped] == [("train.txt:2", "overlap")]


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
        made(train, evaluation)
    assert str(caught.value).startswith(
        f"t:2: the prompt {training!r} of the training set train is also at f:1, in the evaluation set heldout as"
        f" {held_out!r}; "
    )
    policy = ErrorPolicy(drop=True)
    trained, evaluated = made(train, evaluation, policy)
    assert [p.prompt for p in trained.prompts + evaluated.prompts] == ["a dog", training + "!", held_out]
    assert [(d["where"], d["reason"]) for d in policy.dropped] == [("t:2", "overlap")]


def test_how_many_prompts_are_in_both_sets_is_told_at_once() -> None:
    both = [source(f"prompt {i}", f"t:{i}") for i in range(4)]
    with pytest.raises(BadPrompt, match=r"^t:1: .* \(2 more of its prompts are in evaluation sets\)$"):
        made([both], [both[1:]])


def test_prompts_of_one_set_that_look_alike_both_stay() -> None:
    trained, evaluated = made([[source("a dog"), source("A dog")]], [[source("a cat"), source("a  cat")]])
    assert len(trained.prompts) == len(evaluated.prompts) == 2


def test_one_prompt_with_two_metadata_is_an_error_or_the_later_one_is_dropped() -> None:
    train = [[source("two dogs", "f:1", metadata=RECORD), source("two dogs", "f:2", metadata={"n": 2})]]
    with pytest.raises(BadPrompt, match="f:2: the prompt 'two dogs' has other metadata than at f:1"):
        made(train, [[source("a cow")]])
    policy = ErrorPolicy(drop=True)
    trained, _ = made(train, [[source("a cow")]], policy)
    assert trained == PromptSet([Prompt(0, "two dogs", None, RECORD, "train")], ids=[(0, 1)], duplicates=[0])
    assert [d["reason"] for d in policy.dropped] == ["conflict"]


def test_nothing_left_is_an_error() -> None:
    message = r"^prepare_prompts\.sets\.train: no prompt is left; see its sources in params\.yaml$"
    with pytest.raises(UserError, match=message):
        made([[source("a cat")]], [[source("a cat")]], ErrorPolicy(drop=True))


def test_the_world_gives_all_its_captions_once() -> None:
    from rtdmd.world.grammar import captions

    trained, evaluated = made([world_sources("train")], [world_sources("heldout")])
    prompts = trained.prompts + evaluated.prompts
    assert len(prompts) == len(captions()) == 284
    assert trained.duplicates == evaluated.duplicates == [0]
    assert all(p.metadata is not None and p.metadata["prompt"] == p.prompt and p.tag for p in prompts)
    assert [p.id for p in prompts] == list(range(284))


def test_rows_survive_the_file(tmp_path: Path) -> None:
    prompts = [Prompt(0, "a café", None, None, "one"), Prompt(1, "two dogs", "counting", RECORD, "two")]
    write_jsonl(tmp_path / "p.jsonl", [prompt.row() for prompt in prompts])
    assert read_prompts(tmp_path / "p.jsonl") == prompts
    assert read_set(tmp_path / "p.jsonl", "two") == prompts[1:]
    with pytest.raises(
        UserError, match=r"p\.jsonl: no prompt of the set three; `rtdmd prepare_prompts` makes it anew$"
    ):
        read_set(tmp_path / "p.jsonl", "three")
