"""A foreign record is read, judged and shown: whatever is in it, no traceback, no file outside, no escape sequence."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest

from rtdmd.cli import main
from rtdmd.common.files import read_json, sha256_file, sha256_tree, write_json
from tests.publish.odd_records import PATHS, write_odd
from tests.publish.publication import copy_repository

ROUNDS = int(os.environ.get("RTDMD_ROUNDS", "150"))


@pytest.fixture
def root(run_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The repository as the working directory; reading a file of another folder than the test's is an error."""

    def within(path: Path) -> Path:
        assert path.resolve().is_relative_to(tmp_path), path
        return path

    monkeypatch.setattr("rtdmd.pipeline.lineage.sha256_tree", lambda path: sha256_tree(within(path)))
    monkeypatch.setattr("rtdmd.publish.trace.sha256_file", lambda path: sha256_file(within(path)))
    copy = copy_repository(run_repository, tmp_path / "repository")
    monkeypatch.chdir(copy)
    return copy


def whole(root: Path) -> dict[str, dict[str, object]]:
    """The records of a published folder and of a stage's."""
    publish = root / "results/publish"
    files = dict.fromkeys(("README.md", "samples.png"), "0" * 64)
    upload = {"tag": "t", "git_commit": None, "changed_files": ["x.py"], "stale": [], "files": files}
    return {
        "provenance.json": read_json(publish / "provenance.json"),
        "gate.json": read_json(publish / "gate.json"),
        "upload.json": upload,
        "resolved.json": read_json(root / "results/train_rtdmd/resolved.json"),
    }


def test_odd_records_end_in_a_word_and_never_in_a_traceback(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = whole(root)
    codes = []
    for seed in range(ROUNDS):
        folder = tmp_path / "odd"
        folder.mkdir()
        target = write_odd(folder, records, random.Random(seed))
        codes.append(main(["trace", str(target)]))
        said = capsys.readouterr()
        assert said.err.count("\n") == (codes[-1] > 0), seed
        assert len(said.err) < 5000, seed
        strange = {mark for mark in said.out + said.err if not mark.isprintable()} - {"\n"}
        assert not strange, seed
        shutil.rmtree(folder)
    assert set(codes) == {1, 2}  # the versions of this machine are not the record's


def test_paths_outside_are_named_and_not_read(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(shutil.copytree(root / "results/publish", tmp_path / "published"))
    record, gate = read_json(folder / "provenance.json"), read_json(folder / "gate.json")
    for path in (path for path in PATHS if path.startswith(("/", "."))):
        write_json(folder / "gate.json", {"sha256": {}})
        record["inputs"]["train_rtdmd"] = {path: "0" * 64}
        write_json(folder / "provenance.json", record)
        assert main(["trace", str(folder)]) == 1
        said = capsys.readouterr().err
        assert f"train_rtdmd: {path}: 000000000000 recorded, outside of this folder, not looked at here" in said
        write_json(folder / "gate.json", {"sha256": {**gate["sha256"], path: "0" * 64}})
        assert main(["trace", str(folder)]) == 2
        assert "gate.json: not a record of this package (sha256." in capsys.readouterr().err


def test_an_absolute_path_into_this_folder_is_looked_at(root: Path, tmp_path: Path) -> None:
    from rtdmd.publish.trace import trace_path

    folder = Path(shutil.copytree(root / "results/publish", tmp_path / "published"))
    record = read_json(folder / "provenance.json")
    record["inputs"]["train_rtdmd"][f"{root}/code/sub/model.py"] = sha256_file(root / "code/sub/model.py")
    write_json(folder / "provenance.json", record)
    assert [one.what for one in trace_path(folder).compare(root) if "model.py" in one.what] == []
