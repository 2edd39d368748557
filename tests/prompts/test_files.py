"""Prompt files: every schema, every fault with its file and line, dropped where asked for."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from rtdmd.common.errors import UserError
from rtdmd.prompts.files import checked, file_sources
from rtdmd.prompts.records import BadPrompt, ErrorPolicy, Source
from rtdmd.prompts.sources.geneval import geneval_record
from rtdmd.prompts.sources.geneval2 import geneval2_record
from rtdmd.prompts.sources.ocr import shown_text

CHECKS = {"geneval": geneval_record, "geneval2": geneval2_record, "ocr": shown_text}
GENEVAL = {"tag": "counting", "include": [{"class": "dog", "count": 2}], "prompt": "two dogs"}


def read(
    tmp_path: Path, name: str, content: str | bytes, policy: ErrorPolicy | None = None, most: int = 99
) -> list[Source]:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return file_sources(path, name, policy or ErrorPolicy(), most)


def test_text_files_hold_one_prompt_a_line(tmp_path: Path) -> None:
    sources = read(tmp_path, "p.txt", "\ufeffa dog \r\n\n  a cat\n\n")
    assert [(s.prompt, s.tag, s.metadata) for s in sources] == [("a dog", None, None), ("a cat", None, None)]
    assert [s.where for s in sources] == ["p.txt:1", "p.txt:3"]


def test_json_and_jsonl_hold_strings_and_objects(tmp_path: Path) -> None:
    entries = ["a dog", {"prompt": " a cat "}, {"prompt": "a cow", "tag": "t", "metadata": {"k": 1}}, GENEVAL]
    expected = [
        ("a dog", None, None),
        ("a cat", None, None),
        ("a cow", "t", {"k": 1}),
        ("two dogs", "counting", GENEVAL),
    ]
    as_json = read(tmp_path, "p.json", json.dumps(entries, indent=1))
    as_lines = read(tmp_path, "p.jsonl", "\n".join(json.dumps(entry) for entry in entries))
    for sources in (as_json, as_lines):
        assert [(s.prompt, s.tag, s.metadata) for s in sources] == expected


def test_tables_have_a_header(tmp_path: Path) -> None:
    sources = read(tmp_path, "p.csv", 'Prompts,Category\n"a dog, a cat",Colors\r\n\n"two\nlines",\n')
    assert [(s.prompt, s.tag, s.metadata) for s in sources] == [
        ("a dog, a cat", "Colors", None),
        ("two\nlines", None, None),
    ]
    assert [s.where for s in sources] == ["p.csv:2", "p.csv:4"]
    tabs = read(tmp_path, "p.tsv", "prompt\tseed\na dog\t7\n")
    assert [(s.prompt, s.metadata) for s in tabs] == [("a dog", {"prompt": "a dog", "seed": "7"})]


LINES = [
    ("p.jsonl", b'{"prompt": }', "malformed", r"p\.jsonl:2: not JSON \(Expecting value, column 12\)"),
    ("p.jsonl", b'{"prompt": "a", "metadata": {"x": NaN}}', "malformed", r"p\.jsonl:2: NaN is no JSON number"),
    ("p.jsonl", b'{"text": "a cat"}', "malformed", r'p\.jsonl:2: a string or an object with "prompt" is expected'),
    ("p.jsonl", b"7", "malformed", r"p\.jsonl:2: a string or an object"),
    ("p.jsonl", b'{"prompt": "  "}', "empty", r"p\.jsonl:2: the prompt is \"  \"; a text that is not empty"),
    ("p.jsonl", b'{"prompt": 3}', "malformed", r"p\.jsonl:2: the prompt is 3"),
    ("p.jsonl", b'{"prompt": "a", "metadata": []}', "malformed", r"p\.jsonl:2: metadata is \[\]; dict or null"),
    ("p.jsonl", b'{"prompt": "a", "tag": 1}', "malformed", r"p\.jsonl:2: tag is 1; str or null"),
    ("p.jsonl", b'{"prompt": "a", "tag": "\\ud800"}', "encoding", r'p\.jsonl:2: half a character \("\\ud800"\)'),
    ("p.jsonl", b'"a caf\xe9"', "encoding", r"p\.jsonl:2: not UTF-8 \(the byte 0xe9\)"),
    ("p.txt", b"a caf\xe9", "encoding", r"p\.txt:2: not UTF-8 \(the byte 0xe9\); save the file as UTF-8"),
    ("p.txt", b"a \x1b[0m cat", "encoding", r'p\.txt:2: the prompt is .*, with the control character "\\u001b" in it'),
    ("p.txt", "a\x85cat".encode(), "encoding", r'p\.txt:2: the prompt is .*, with the control character "\\u0085"'),
    ("p.jsonl", b'"a\\u0000cat"', "encoding", r'p\.jsonl:2: the prompt is .*, with the control character "\\u0000"'),
    ("p.txt", "\u200b \u2060\ufe0f".encode(), "empty", r"p\.txt:2: the prompt is "),
    ("p.jsonl", b'{"prompt": "a", "metadata": {"x": 1e999}}', "malformed", r"p\.jsonl:2: 1e999 is beyond the largest"),
    (
        "p.jsonl",
        b'{"prompt": ' + b"7" * 5000 + b"}",
        "malformed",
        r"p\.jsonl:2: not JSON that can be read \(an integer",
    ),
    ("p.jsonl", b"[" * 50_000, "malformed", r"p\.jsonl:2: not JSON that can be read \(nested too deep\)"),
    ("p.csv", b"caf\xe9", "encoding", r"p\.csv:2: not UTF-8 \(the byte 0xe9\); save the file as UTF-8"),
    ("p.csv", b'"a "cat"', "malformed", r"p\.csv:2: a quote is not closed or misplaced \("),
    ("p.csv", b'"a cat', "malformed", r"p\.csv:2: a quote is not closed or misplaced \(.*expected"),
    ("p.txt", b"x" * 100, "overlong", r"p\.txt:2: the prompt has 100 characters, above .*max_characters: 99"),
    ("p.tsv", b"a\tb", "malformed", r"p\.tsv:2: 1 columns are expected, got 2"),
]


@pytest.mark.parametrize(("name", "line", "reason", "says"), LINES)
def test_a_faulty_line_is_an_error_or_dropped_and_reported(
    tmp_path: Path, name: str, line: bytes, reason: str, says: str
) -> None:
    table = name.endswith((".tsv", ".csv"))
    first = b"prompt" if table else b'"a dog"'
    content = b"\n".join((first, line, b'"a cow"', b""))
    with pytest.raises(BadPrompt, match=says):
        read(tmp_path, name, content)
    policy = ErrorPolicy(drop=True)
    kept = [s.prompt.strip('"') for s in read(tmp_path, name, content, policy)]
    assert kept == (["a cow"] if table else ["a dog", "a cow"])
    (dropped,) = policy.dropped
    assert (dropped["where"], dropped["reason"]) == (f"{name}:2", reason)


@pytest.mark.parametrize("drop", [False, True])
@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("p.json", b'{"prompt": "a dog"}', r"p\.json: a list of prompts is expected, got dict"),
        ("p.json", b'["a",\n "b" "c"]', r"p\.json: not JSON \(Expecting ',' delimiter, line 2, column 6\)"),
        ("p.csv", b"words,tag\na dog,\n", r"p\.csv:1: a header with the column prompt is expected, got words, tag"),
        ("p.csv", b"Prompt,n,n\na,b,c\n", r"p\.csv:1: the column n is there twice; give them different names"),
        ("p.csv", b'"prompt\na dog\n', r"p\.csv:1: a quote is not closed or misplaced \(unexpected end of data\)"),
        ("p.txt", "a dog\na cat\n".encode("utf-16-le"), r"p\.txt:1: a null byte, as UTF-16 without a mark has them"),
        ("p.jsonl", b'"a dog"\n"a\0cat"\n', r"p\.jsonl:2: a null byte"),
        ("p.txt", b"\n \n", r"p\.txt: there is no prompt in it"),
        ("p.txt", "a dog".encode("utf-16"), r"p\.txt: not UTF-8 but UTF-16; save the file as UTF-8"),
        ("p.xlsx", b"a dog\n", r"p\.xlsx: prompts are read from \.txt, \.json, \.jsonl, \.csv, \.tsv files"),
    ],
)
def test_a_file_that_cannot_be_read_is_always_an_error(
    tmp_path: Path, name: str, content: bytes, says: str, drop: bool
) -> None:
    with pytest.raises(UserError, match=says):
        read(tmp_path, name, content, ErrorPolicy(drop))


def test_one_item_of_a_list_is_not_utf8(tmp_path: Path) -> None:
    data = b'["a dog",\n"caf\xe9", "a cow"]'
    with pytest.raises(BadPrompt, match=r"^p\.json: item 2: not UTF-8 \(the byte 0xe9\)"):
        read(tmp_path, "p.json", data)
    assert [source.prompt for source in read(tmp_path, "p.json", data, ErrorPolicy(drop=True))] == ["a dog", "a cow"]


def test_faulty_rows_of_a_table_cost_only_themselves(tmp_path: Path) -> None:
    rows = ["prompt,tag", '"a dog', "a cat,t", '"a "b" c",t', '"two', 'lines",t', "caf\xe9,t", "one,too,many", "a cow,"]
    policy = ErrorPolicy(drop=True)
    sources = read(tmp_path, "p.csv", "\n".join(rows).encode("latin-1"), policy)
    assert [(s.prompt, s.where) for s in sources] == [
        ("a cat", "p.csv:3"),
        ("two\nlines", "p.csv:5"),
        ("a cow", "p.csv:9"),
    ]
    assert [(d["where"], d["reason"]) for d in policy.dropped] == [
        ("p.csv:2", "malformed"),
        ("p.csv:4", "malformed"),
        ("p.csv:7", "encoding"),
        ("p.csv:8", "malformed"),
    ]


def test_quotes_in_a_tsv_are_text_unless_it_is_written_with_quotes(tmp_path: Path) -> None:
    plain = 'Prompt\tCategory\tChallenge\tNote\n"G I G" on a wall\tArts\tBasic\t\na 5" disk\tArts\tBasic\tan inch\n'
    sources = read(tmp_path, "p.tsv", plain)
    assert [(s.prompt, s.tag) for s in sources] == [('"G I G" on a wall', "Arts"), ('a 5" disk', "Arts")]
    assert sources[1].metadata == {"prompt": 'a 5" disk', "Challenge": "Basic", "Note": "an inch", "tag": "Arts"}
    for quoted in ('prompt\ttag\n"a ""red"" dog"\tx\n', '"prompt"\t"tag"\n"a ""red"" dog"\t"x"\n'):
        assert [(s.prompt, s.tag) for s in read(tmp_path, "p.tsv", quoted)] == [('a "red" dog', "x")]


def test_what_has_no_shape_is_kept_but_for_marks_at_the_ends(tmp_path: Path) -> None:
    sources = read(tmp_path, "p.txt", "a \U0001f469\u200d\U0001f680\n\ufeff a cat\ufeff\na\tb\ufeffc\n")
    assert [s.prompt for s in sources] == ["a \U0001f469\u200d\U0001f680", "a cat", "a\tb\ufeffc"]


# The public files' layouts, with prompts of our own.
PUBLIC = {
    "PartiPrompts.tsv": 'Prompt\tCategory\tChallenge\tNote\n"Hi" on a cup\tArtifacts\tBasic\t\n',
    "drawbench.csv": 'Prompts,Category\nA red cup.,Colors\n"A cup, a fork.",Counting\n',
    "evaluation_metadata.jsonl": json.dumps(GENEVAL) + "\n",
    "geneval2_data.jsonl": json.dumps(
        {"prompt": "two cups", "atom_count": 2, "vqa_list": [["How many cups?", "two"]], "skills": ["count"]}
    )
    + "\n",
    "pickscore_train.txt": "a cup,\ta fork\na \u200bcup\n",
    "ocr_test.txt": 'A cup that says "Hi there", close-up.\n',
    "color_val.txt": "a red cup and a blue fork\r\na green cup\r\n",  # T2I-CompBench
    "benchmark.json": '["a cup", "a fork"]',
    "hpdv3.json": '[{"prompt": "a cup", "path1": "x.jpg", "path2": "y.jpg", "confidence": null}]',
    "dpg_1.txt": "A long text about a cup. It stands on a table.",  # DPG's folder of prompts: one a file, no line break
}
FIRST = {
    "PartiPrompts.tsv": '"Hi" on a cup',
    "drawbench.csv": "A red cup.",
    "color_val.txt": "a red cup and a blue fork",
}


@pytest.mark.parametrize("name", PUBLIC)
def test_public_files_load_as_they_are_distributed(tmp_path: Path, name: str) -> None:
    sources = read(tmp_path, name, PUBLIC[name])
    assert sources[0].prompt == FIRST.get(name, sources[0].prompt)
    assert len(sources) == max(PUBLIC[name].count("\n") - name.endswith((".tsv", ".csv")), 1 + name.startswith("bench"))
    for kind in ("geneval2", "geneval", "ocr"):
        if name.startswith({"geneval": "evaluation"}.get(kind, kind)):
            assert checked(sources, CHECKS[kind], ErrorPolicy())[0].metadata is not None


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "p.txt")
    with pytest.raises(UserError, match=r"^p\.txt: not a regular file; see prepare_prompts in params\.yaml$"):
        file_sources(tmp_path / "p.txt", "p.txt", ErrorPolicy())


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^nowhere\.txt: no such file; see prepare_prompts in params\.yaml$"):
        file_sources(tmp_path / "nowhere.txt", "nowhere.txt", ErrorPolicy())


VQA = {"prompt": "a dog", "vqa_list": [["Is there a dog?", "Yes"]], "skills": ["object"]}
RELATED = [{"class": "cat", "count": 1}, {"class": "dog", "count": 1, "position": ["left of", 0]}]


@pytest.mark.parametrize(
    ("name", "good", "bad", "says"),
    [
        ("geneval", GENEVAL, {"prompt": "two dogs"}, r"metadata tag: None; allowed: single_object, two_object"),
        ("geneval", GENEVAL, {**GENEVAL, "include": []}, "metadata include: 'nothing'; allowed: at least one object"),
        (
            "geneval",
            GENEVAL,
            {**GENEVAL, "include": [{"class": "dog"}]},
            "metadata count: None; allowed: a whole number",
        ),
        ("geneval", GENEVAL, {**GENEVAL, "exclude": [{"class": "unicorn", "count": 3}]}, "metadata class: 'unicorn'"),
        (
            "geneval",
            {**GENEVAL, "include": RELATED},
            {**GENEVAL, "include": RELATED[::-1]},
            r"metadata position: \['left of', 0\]; allowed: .relation, number of an earlier requirement",
        ),
        ("geneval2", VQA, {**VQA, "vqa_list": [["Is there a dog?"]]}, r"needs .*a list of \[question, answer\]"),
        ("geneval2", VQA, {**VQA, "vqa_list": [["What is it?", "a dog"]]}, "has the answer 'a dog' in vqa_list"),
        ("geneval2", VQA, {**VQA, "skills": []}, 'needs "skills" with an entry for each question'),
        ("ocr", {"prompt": 'a sign "OPEN"'}, {"prompt": "a sign OPEN"}, "no text in double quotes"),
    ],
)
def test_a_named_set_holds_what_its_reward_needs(tmp_path: Path, name: str, good: dict, bad: dict, says: str) -> None:
    sources = read(tmp_path, "p.jsonl", "\n".join(json.dumps(entry) for entry in (good, bad)))
    with pytest.raises(BadPrompt, match=rf"p\.jsonl:2: .*the prompt .* {says}"):
        checked(sources, CHECKS[name], ErrorPolicy())
    policy = ErrorPolicy(drop=True)
    (kept,) = checked(sources, CHECKS[name], policy)
    assert kept.metadata == ({"target": "OPEN"} if name == "ocr" else good)
    assert [d["where"] for d in policy.dropped] == ["p.jsonl:2"]


def test_a_geneval_record_may_stand_under_metadata(tmp_path: Path) -> None:
    record = {"include": GENEVAL["include"]}
    sources = read(tmp_path, "p.json", json.dumps([{"prompt": "two dogs", "tag": "counting", "metadata": record}]))
    (kept,) = checked(sources, CHECKS["geneval"], ErrorPolicy())
    assert (kept.tag, kept.metadata) == ("counting", GENEVAL)
