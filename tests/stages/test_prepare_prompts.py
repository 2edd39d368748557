"""Stage prepare_prompts in a folder of its own: the world's captions, the user's files, and their faults."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from rtdmd.config import preset
from rtdmd.config.render import params_text
from rtdmd.errors import UserError
from rtdmd.files import read_json, sha256_file
from rtdmd.prompts import read_prompts
from rtdmd.stages import prepare_prompts
from rtdmd.world.grammar import captions
from tests.workspace import REPOSITORY


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "rtdmd").symlink_to(REPOSITORY / "rtdmd")
    shutil.copy(REPOSITORY / "dvc.yaml", tmp_path / "dvc.yaml")
    set_prompts(tmp_path)
    return tmp_path


def set_prompts(root: Path, **section: Any) -> None:
    (root / "params.yaml").write_text(params_text(preset("smoke", {"prepare_prompts": section}), "test"))


def use_files(root: Path, train: str, evaluation: str) -> None:
    """Source: file, with the files declared as the stage's dependencies."""
    set_prompts(root, source="file", train_file="data/mine/train.txt", eval_file="data/mine/eval.jsonl")
    (root / "data" / "mine").mkdir(parents=True, exist_ok=True)
    (root / "data" / "mine" / "train.txt").write_text(train)
    (root / "data" / "mine" / "eval.jsonl").write_text(evaluation)
    dvc = (REPOSITORY / "dvc.yaml").read_text()
    (root / "dvc.yaml").write_text(
        dvc.replace("      - rtdmd/prompts.py\n", "      - data/mine\n      - rtdmd/prompts.py\n", 1)
    )


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
    assert summary["source"] == "world"
    assert summary["train"]["prompts"] + summary["eval"]["prompts"] == 284
    assert summary["eval"]["sha256"] == sha256_file(results(root, "eval.jsonl"))
    assert sum(summary["eval"]["per_tag"].values()) == summary["eval"]["with_metadata"] == len(evaluation)


def test_the_same_params_give_the_same_bytes(root: Path) -> None:
    prepare_prompts.run(root)
    first = {path.name: path.read_bytes() for path in results(root, ".").iterdir()}
    prepare_prompts.run(root)
    assert {path.name: path.read_bytes() for path in results(root, ".").iterdir()} == first


def test_prompts_from_files(root: Path) -> None:
    use_files(root, "a dog\na cat\na dog\n", json.dumps({"prompt": "two cows", "metadata": {"n": 2}}))
    prepare_prompts.run(root)
    rows = [json.loads(line) for line in results(root, "train.jsonl").read_text().splitlines()]
    assert rows == [{"id": i, "prompt": p, "tag": None, "metadata": None} for i, p in enumerate(("a dog", "a cat"))]
    assert [(p.id, p.metadata) for p in read_prompts(results(root, "eval.jsonl"))] == [(2, {"n": 2})]
    assert read_json(results(root, "summary.json"))["train"]["duplicates_dropped"] == 1


def test_a_fault_leaves_the_last_result_alone(root: Path) -> None:
    prepare_prompts.run(root)
    before = results(root, "train.jsonl").read_bytes()
    use_files(root, "a dog\n", '{"prompt": "a dog"}')
    with pytest.raises(UserError, match=r"'a dog' is in .*train\.txt:1 \(training\) and .*eval\.jsonl:1"):
        prepare_prompts.run(root)
    assert results(root, "train.jsonl").read_bytes() == before


def test_an_undeclared_file_says_where_to_declare_it(root: Path) -> None:
    set_prompts(root, source="file", train_file="elsewhere.txt", eval_file="other.txt")
    with pytest.raises(UserError, match=r"dvc\.yaml: stage prepare_prompts reads elsewhere\.txt .*add it to"):
        prepare_prompts.run(root)
