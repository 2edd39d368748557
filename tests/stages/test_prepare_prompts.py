"""Stage prepare_prompts in a folder of its own: every kind of source, their faults, and what both engines see."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from rtdmd.common.errors import UserError
from rtdmd.common.files import read_json, sha256_bytes, sha256_file
from rtdmd.config import preset
from rtdmd.config.render import params_text
from rtdmd.prompts.records import read_prompts
from rtdmd.stages import prepare_prompts
from rtdmd.world.grammar import captions
from tests.workspace import REPOSITORY

COMMIT = "0123456789abcdef0123456789abcdef01234567"
HELD_OUT = [{"name": "world", "split": "heldout"}]
# What the demo's prompts are; later stages key noise and text by them.
WORLD_BYTES = {
    "train.jsonl": "f672eba2d7bb5c67ca8c7a915513d0f9a66b20e3339e6eb907e2c7bd34a5fc7b",
    "eval.jsonl": "456e9a1d33c26c5b46bdd6adf0d3a7115217d1f3fbc2d3e99c41f0b5f4c4dc50",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "rtdmd").symlink_to(REPOSITORY / "rtdmd")
    shutil.copy(REPOSITORY / "dvc.yaml", tmp_path / "dvc.yaml")
    (tmp_path / "data" / "prompts").mkdir(parents=True)
    set_prompts(tmp_path)
    return tmp_path


def set_prompts(root: Path, train: Any = None, heldout: Any = None, **section: Any) -> None:
    """The smoke preset with other sources of its two sets."""
    sets = {name: sources for name, sources in (("train", train), ("heldout", heldout)) if sources is not None}
    (root / "params.yaml").write_text(
        params_text(preset("smoke", {"prepare_prompts": section | {"sets": sets}}), "test")
    )


def use_files(root: Path, train: str | bytes, evaluation: str, **section: Any) -> None:
    """Training from a .txt file, evaluation from a .jsonl file."""
    for name, content in (("train.txt", train), ("eval.jsonl", evaluation)):
        data = content if isinstance(content, bytes) else content.encode()
        (root / "data" / "prompts" / name).write_bytes(data)
    files = [[{"name": "prompts", "path": f"data/prompts/{name}"}] for name in ("train.txt", "eval.jsonl")]
    set_prompts(root, *files, **section)


def results(root: Path, name: str) -> Path:
    return root / "results" / "prepare_prompts" / name


def test_the_worlds_captions_by_split(root: Path) -> None:
    prepare_prompts.run(root)
    train, evaluation = (read_prompts(results(root, f"{split}.jsonl")) for split in ("train", "eval"))
    expected = {split: [c for c in captions() if c.split == split] for split in ("train", "heldout")}
    assert [p.prompt for p in train] == [c.prompt for c in expected["train"]]
    assert [(p.prompt, p.tag, p.metadata) for p in evaluation] == [
        (c.prompt, c.tag, c.metadata()) for c in expected["heldout"]
    ]
    summary = read_json(results(root, "summary.json"))
    assert set(summary) == {"files", "sets"} and list(summary["sets"]) == ["heldout", "train"]
    assert {name: about["sha256"] for name, about in summary["files"].items()} == WORLD_BYTES
    assert {name: about["prompts"] for name, about in summary["files"].items()} == {
        "train.jsonl": 246,
        "eval.jsonl": 38,
    }
    assert {name: sha256_file(results(root, name)) for name in WORLD_BYTES} == WORLD_BYTES
    heldout = summary["sets"]["heldout"]
    assert (heldout["use"], heldout["source"], heldout["prompts"]) == ("evaluation", "world", 38)
    assert sum(heldout["per_tag"].values()) == heldout["with_metadata"] == 38


def test_the_same_params_give_the_same_bytes(root: Path) -> None:
    prepare_prompts.run(root)
    first = {path.name: path.read_bytes() for path in results(root, ".").iterdir()}
    prepare_prompts.run(root)
    assert {path.name: path.read_bytes() for path in results(root, ".").iterdir()} == first


def test_prompts_from_files(root: Path) -> None:
    train = "a dog\na cat\na dog\n"
    use_files(root, train, json.dumps({"prompt": "two cows", "metadata": {"n": 2}}))
    prepare_prompts.run(root)
    rows = [json.loads(line) for line in results(root, "train.jsonl").read_text().splitlines()]
    assert rows == [
        {"id": 0, "prompt": "a dog", "tag": None, "metadata": None, "set": "train", "times": 2},
        {"id": 1, "prompt": "a cat", "tag": None, "metadata": None, "set": "train", "times": 1},
    ]
    assert [(p.id, p.metadata) for p in read_prompts(results(root, "eval.jsonl"))] == [(2, {"n": 2})]
    assert read_json(results(root, "summary.json"))["sets"]["train"]["duplicates_dropped"] == 1
    found = read_json(results(root, "sources.json"))["sets"]["train"]
    assert found["dropped"] == []
    assert found["sources"] == [
        {
            "name": "prompts",
            "path": "data/prompts/train.txt",
            "sha256": sha256_bytes(train.encode()),
            "read": 3,
            "duplicates": 1,
            "ids": [0, 2],
        }
    ]


def test_a_fault_leaves_the_last_result_alone(root: Path) -> None:
    prepare_prompts.run(root)
    before = {path.name: path.read_bytes() for path in results(root, ".").iterdir()}
    use_files(root, "a dog\n", '{"prompt": "a dog"}')
    with pytest.raises(
        UserError, match=r"^data/prompts/train\.txt:1: the prompt 'a dog' .* data/prompts/eval\.jsonl:1"
    ):
        prepare_prompts.run(root)
    use_files(root, b"a dog\na caf\xe9\n", '"a cat"')
    with pytest.raises(UserError, match=r"^data/prompts/train\.txt:2: not UTF-8"):
        prepare_prompts.run(root)
    assert {path.name: path.read_bytes() for path in results(root, ".").iterdir()} == before


TWO_DOGS = {"tag": "counting", "include": [{"class": "dog", "count": 2}], "prompt": "a photo of two dogs"}
A_CAT = {"tag": "single_object", "include": [{"class": "cat", "count": 1}], "prompt": "a photo of a cat"}
A_PIG = {"prompt": "a green pig", "vqa_list": [["Is the pig green?", "Yes"]], "skills": ["attribute"]}
PUBLIC = {  # a line or a few of each file, in its layout
    "pickscore_train.txt": ["a dog on the moon", "a cube made of brick"],
    "geneval_train.jsonl": [json.dumps(TWO_DOGS)] * 3 + [json.dumps(A_CAT)],
    "drawbench.txt": ["A cube made of brick"] * 5,
    "hpsv3.txt": ["a castle"],
    "geneval.jsonl": [json.dumps(A_CAT)] * 4,
    "geneval2.jsonl": [json.dumps(A_PIG)],
    "ocr.txt": ['a sign that says "Stop"'],
}


def test_the_prompt_files_that_a_preset_names_are_the_users_in_their_public_layouts(root: Path) -> None:
    """Without them one line; with them the published sets, each once, and training apart from all evaluation."""
    tree = preset("sd35m").model_dump(mode="json", exclude_none=True)
    sections = {name: {"prompts": tree[name]["prompts"]} for name in ("train_acdmd", "train_rtdmd")}
    sections["prepare_prompts"] = tree["prepare_prompts"]
    sections["evaluate"] = {key: tree["evaluate"][key] for key in ("suites", "rewards")}
    (root / "params.yaml").write_text(params_text(preset("smoke", sections), "test"))
    says = (
        r"^data/prompts/drawbench\.txt: no such file; put it there, or name another in prepare_prompts of params\.yaml"
    )
    with pytest.raises(UserError, match=says):
        prepare_prompts.run(root)
    assert not results(root, "train.jsonl").exists()
    for name, lines in PUBLIC.items():
        (root / "data/prompts" / name).write_text("\n".join(lines))
    prepare_prompts.run(root)
    found = [read_prompts(results(root, f"{split}.jsonl")) for split in ("train", "eval")]
    assert [(p.set, p.prompt, p.times) for p in found[0]] == [
        ("pickscore", "a dog on the moon", 1),
        ("geneval_train", "a photo of two dogs", 3),
    ]
    assert [(p.set, p.prompt, p.times) for p in found[1]] == [
        ("drawbench", "A cube made of brick", 5),
        ("hpsv3", "a castle", 1),
        ("geneval", "a photo of a cat", 4),
        ("geneval2", "a green pig", 1),
        ("ocr", 'a sign that says "Stop"', 1),
    ]
    sets = read_json(results(root, "sources.json"))["sets"]
    assert {name: [d["reason"] for d in about["dropped"]] for name, about in sets.items() if about["dropped"]} == {
        "pickscore": ["overlap"],
        "geneval_train": ["overlap"],
    }


def test_dropped_prompts_are_counted_and_listed(root: Path) -> None:
    train = b"a dog\na caf\xe9\na cat\n" + b"x" * 30 + b"\n"
    use_files(root, train, '"a cat"\n{"prompt": ""}\n', on_bad="drop", max_characters=20)
    prepare_prompts.run(root)
    assert [p.prompt for p in read_prompts(results(root, "train.jsonl"))] == ["a dog"]
    summary = read_json(results(root, "summary.json"))["sets"]
    assert summary["train"]["dropped"] == {"encoding": 1, "overlong": 1, "overlap": 1}
    assert summary["heldout"]["dropped"] == {"empty": 1}
    listed = read_json(results(root, "sources.json"))["sets"]
    assert {name: [(d["where"], d["reason"]) for d in found["dropped"]] for name, found in listed.items()} == {
        "heldout": [("data/prompts/eval.jsonl:2", "empty")],
        "train": [
            ("data/prompts/train.txt:2", "encoding"),
            ("data/prompts/train.txt:4", "overlong"),
            ("data/prompts/train.txt:3", "overlap"),
        ],
    }


def test_a_hub_dataset_is_read_as_a_file_laid_out_alike(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    downloaded = root / "hub.csv"
    downloaded.write_text('Prompts,Category\n"a red car",Colors\n"two cats",Counting\n')
    asked = []

    def download(repo: str, path: str, **options: Any) -> str:
        asked.append((repo, path, options))
        return str(downloaded)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    hub = {"name": "drawbench", "repo": "a/b", "revision": COMMIT, "path": "drawbench.csv"}
    set_prompts(root, heldout=[*HELD_OUT, hub])
    prepare_prompts.run(root)
    assert asked == [("a/b", "drawbench.csv", {"repo_type": "dataset", "revision": COMMIT})]
    evaluation = read_prompts(results(root, "eval.jsonl"))
    assert [(p.prompt, p.tag) for p in evaluation[38:]] == [("a red car", "Colors"), ("two cats", "Counting")]
    (_, origin) = read_json(results(root, "sources.json"))["sets"]["heldout"]["sources"]
    assert origin == hub | {"sha256": sha256_file(downloaded), "read": 2, "duplicates": 0, "ids": [284, 286]}
    assert read_json(results(root, "summary.json"))["sets"]["heldout"]["source"] == "world, drawbench"
    downloaded.write_text("Prompts,Category\na red car,Colors,7\n")
    with pytest.raises(UserError, match=r"^a/b@01234567/drawbench\.csv:2: 2 columns are expected, got 3"):
        prepare_prompts.run(root)


def test_generated_prompts_avoid_evaluations(root: Path) -> None:
    singles = {"name": "generated", "tags": {"single_object": 70}}
    set_prompts(root, train=[singles | {"tags": {"single_object": 10, "counting": 5}}], heldout=[singles])
    prepare_prompts.run(root)
    train, evaluation = (read_prompts(results(root, f"{split}.jsonl")) for split in ("train", "eval"))
    assert [p.tag for p in train] == ["single_object"] * 10 + ["counting"] * 5
    assert len({p.prompt for p in train + evaluation}) == 85


@pytest.mark.parametrize(
    ("sets", "says"),
    [
        ({"train": []}, r"prepare_prompts\.sets\.train: \[\] is not allowed"),
        (
            {"": HELD_OUT},
            r"prepare_prompts\.sets\.'' cannot be the name of a set; allowed: a letter, then letters, digits and _",
        ),
        ({"my set": HELD_OUT}, r"sets\.'my set' cannot be the name of a set"),
        ({"7": HELD_OUT}, r"sets\.'7' cannot be the name of a set"),
        ({7: HELD_OUT}, r"sets\.7 cannot be the name of a set"),
        (
            {"heldout": [{"name": "world"}]},
            r"prepare_prompts\.sets\.heldout\[0\]\.split is missing; allowed: which captions: train or heldout",
        ),
        (
            {"train": [{"name": "prompts", "path": "mine.txt"}]},
            r"path: 'mine.txt'; allowed: a file below data/prompts/",
        ),
        ({"train": [{"name": "ocr", "path": "data/prompts/../x.txt"}]}, r"allowed: a file below data/prompts/"),
        (
            {"train": [{"name": "ocr", "path": "x.txt", "repo": "a/b"}]},
            r"train\[0\]\.revision: None; allowed: the 40 hex digits of a commit",
        ),
        (
            {"train": [{"name": "ocr", "path": "x.txt", "repo": "a/b", "revision": "main"}]},
            r"revision: 'main'; allowed: the 40 hex digits of a commit",
        ),
        (
            {"train": [{"name": "ocr", "path": "x.txt", "repo": "ab", "revision": COMMIT}]},
            r"repo: 'ab'; allowed: owner/name",
        ),
        (
            {"train": [{"name": "ocr", "path": "x.txt", "repo": "owner/a--b", "revision": COMMIT}]},
            r"repo: 'owner/a--b'; allowed: owner/name, each of ASCII letters",
        ),
        (
            {"train": [{"name": "ocr", "path": "data/prompts/x.txt", "revision": COMMIT}]},
            r"revision: '0123.*' without repo; allowed: null",
        ),
        ({"train": [{"name": "ocr"}]}, r"train\[0\]\.path is missing; allowed: file below data/prompts, or"),
        ({"train": [{"name": "orc", "path": "x"}]}, r"train\[0\]\.name: 'orc' is not allowed; .*did you mean ocr\?"),
        (
            {"train": [{"name": "generated", "tags": {"colours": 3}}]},
            r"tags: colours: 3; allowed: at least 1 of single",
        ),
        ({"train": [{"name": "generated", "tags": {}}]}, r"tags: {}; allowed: at least 1 of single_object"),
        (
            {"train": [{"name": "generated", "split": "train"}]},
            r"train\[0\]\.split: unknown key \(value 'train'\); allowed: name, tags",
        ),
    ],
)
def test_what_is_wrong_with_a_source_is_named(sets: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        preset("smoke", {"prepare_prompts": {"sets": sets}})


def test_both_engines_see_a_change_of_a_prompt_file(root: Path) -> None:
    """The declared folder is what DVC hashes; the rules get its files one by one."""
    from rtdmd.config import load_params
    from rtdmd.config.load import validate
    from rtdmd.pipeline.dvc_yaml import read_pipeline
    from rtdmd.pipeline.engines import load_jobs
    from rtdmd.pipeline.stage import open_stage

    use_files(root, "a dog\n", '"a cat"')
    assert "data/prompts" in read_pipeline(root)["prepare_prompts"].deps
    hashes = []
    for text in ("a dog\n", "a cow\n"):
        (root / "data" / "prompts" / "train.txt").write_text(text)
        with pytest.raises(InterruptedError), open_stage("prepare_prompts", root) as stage:
            hashes.append(stage.inputs["data/prompts"])
            raise InterruptedError
    assert hashes[0] != hashes[1]
    (root / ".dvc").mkdir()
    (root / ".dvc" / "config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
    (root / "data" / "world").symlink_to(REPOSITORY / "data" / "world")  # what the other stages read
    settings = load_params(root / "params.yaml").model_dump(mode="json")
    for stage in ("train_acdmd", "train_rtdmd"):  # a .txt has neither tags nor metadata
        settings[stage]["prompt_order"] = "uniform"
    clipscore, *_ = settings["train_rtdmd"]["rewards"]
    settings["train_rtdmd"]["rewards"] = [clipscore | {"policy": None}]
    job = load_jobs(validate(settings, "settings"), root)["prepare_prompts"]
    assert {"data/prompts/train.txt", "data/prompts/eval.jsonl"} <= set(job.inputs)
