"""Reading prompts: every schema, every fault with its file and line, disjoint sets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rtdmd.errors import UserError
from rtdmd.files import write_jsonl
from rtdmd.prompts import Prompt, file_sources, make_sets, read_prompts, world_sources

GENEVAL = {"tag": "counting", "include": [{"class": "dog", "count": 2}], "prompt": "two dogs"}


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_text_files_hold_one_prompt_a_line(tmp_path: Path) -> None:
    sources = file_sources(write(tmp_path / "p.txt", "\ufeffa dog \r\n\n  a cat\n\n"))
    assert [(s.prompt, s.tag, s.metadata) for s in sources] == [("a dog", None, None), ("a cat", None, None)]
    assert sources[1].where.endswith("p.txt:3")


def test_json_and_jsonl_hold_strings_and_objects(tmp_path: Path) -> None:
    entries = ["a dog", {"prompt": " a cat "}, {"prompt": "a cow", "tag": "t", "metadata": {"k": 1}}, GENEVAL]
    expected = [
        ("a dog", None, None),
        ("a cat", None, None),
        ("a cow", "t", {"k": 1}),
        ("two dogs", "counting", GENEVAL),
    ]
    as_json = write(tmp_path / "p.json", json.dumps(entries, indent=1))
    as_lines = write(tmp_path / "p.jsonl", "\n".join(json.dumps(entry) for entry in entries))
    for path in (as_json, as_lines):
        assert [(s.prompt, s.tag, s.metadata) for s in file_sources(path)] == expected


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("p.jsonl", '"a dog"\n{"prompt": }\n', r"p\.jsonl:2: not JSON"),
        ("p.jsonl", '"a dog"\n\n{"text": "a cat"}\n', r'p\.jsonl:3: a string or an object with "prompt"'),
        ("p.jsonl", '{"prompt": "  "}', r"p\.jsonl:1: the prompt is \"  \"; a text that is not empty"),
        ("p.jsonl", '{"prompt": 3}', r"p\.jsonl:1: the prompt is 3"),
        ("p.jsonl", '{"prompt": "a", "metadata": []}', r"p\.jsonl:1: metadata is \[\]; dict or null"),
        ("p.jsonl", '{"prompt": "a", "tag": 1}', r"p\.jsonl:1: tag is 1; str or null"),
        ("p.json", '{"prompt": "a dog"}', r"p\.json: a list of prompts is expected, got dict"),
        ("p.json", '["a dog", 7]', r"p\.json: item 2: a string or an object"),
        ("p.json", "[", r"p\.json: not JSON"),
        ("p.txt", b"a dog\na caf\xe9\n", r"p\.txt:2: not UTF-8 \(byte 6\)"),
        ("p.txt", "\n \n", r"p\.txt: there is no prompt in it"),
        ("p.csv", "a dog\n", r"p\.csv: prompts are read from \.txt, \.json, \.jsonl files"),
    ],
)
def test_a_fault_names_file_and_line(tmp_path: Path, name: str, content: str | bytes, says: str) -> None:
    with pytest.raises(UserError, match=says):
        file_sources(write(tmp_path / name, content))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.txt: cannot be read \(No such file"):
        file_sources(tmp_path / "nowhere.txt")


def test_sets_are_distinct_numbered_and_disjoint(tmp_path: Path) -> None:
    train = file_sources(write(tmp_path / "train.txt", "a dog\na cat\na dog\n"))
    evaluation = file_sources(write(tmp_path / "eval.jsonl", json.dumps(GENEVAL)))
    sets = make_sets(train, evaluation)
    assert [(p.id, p.prompt) for p in sets.train] == [(0, "a dog"), (1, "a cat")]
    assert sets.eval == [Prompt(2, "two dogs", "counting", GENEVAL)]
    assert sets.duplicates == {"train": 1, "eval": 0}
    overlap = file_sources(write(tmp_path / "both.txt", "a cow\na cat\n"))
    with pytest.raises(UserError, match=r"'a cat' is in .*train\.txt:2 \(training\) and .*both\.txt:2 \(evaluation\)"):
        make_sets(train, overlap)


def test_one_prompt_with_two_metadata_is_refused(tmp_path: Path) -> None:
    lines = [json.dumps(GENEVAL), json.dumps(GENEVAL | {"include": []})]
    sources = file_sources(write(tmp_path / "p.jsonl", "\n".join(lines)))
    with pytest.raises(UserError, match=r"p\.jsonl:2: the prompt 'two dogs' has other metadata than at .*p\.jsonl:1"):
        make_sets(sources, [])


def test_the_world_gives_all_its_captions_once() -> None:
    from rtdmd.world.grammar import captions

    sets = make_sets(world_sources("train"), world_sources("heldout"))
    assert len(sets.train) + len(sets.eval) == len(captions()) == 284
    assert sets.duplicates == {"train": 0, "eval": 0}
    assert all(p.metadata is not None and p.metadata["prompt"] == p.prompt and p.tag for p in sets.train + sets.eval)
    assert [p.id for p in sets.train + sets.eval] == list(range(284))


def test_rows_survive_the_file(tmp_path: Path) -> None:
    prompts = [Prompt(0, "a café", None, None), Prompt(1, "two dogs", "counting", GENEVAL)]
    write_jsonl(tmp_path / "p.jsonl", [prompt.row() for prompt in prompts])
    assert read_prompts(tmp_path / "p.jsonl") == prompts
