"""The commit that a page names: the last one behind it, before and after its results are committed."""

import os
import shutil
from pathlib import Path

import pytest

from rtdmd.common.errors import UserError
from rtdmd.config import preset
from rtdmd.pipeline.engines import load_jobs
from rtdmd.pipeline.provenance import git_state, last_commit, refuse_unreadable
from tests.workflow.checkout import commit, git


def test_the_commit_is_that_of_the_paths_and_results_do_not_move_it(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "a.py").write_text("1")
    assert last_commit(tmp_path, ["code"]) is None
    git(tmp_path, "init", "--quiet")
    assert last_commit(tmp_path, ["code"]) is None
    commit(tmp_path, "code")
    first = git(tmp_path, "rev-parse", "HEAD").strip()
    (tmp_path / "results.json").write_text("{}")
    commit(tmp_path, "results")
    assert git(tmp_path, "rev-parse", "HEAD").strip() != first
    assert last_commit(tmp_path, ["code"]) == first
    (tmp_path / "code" / "b.py").write_text("2")
    assert last_commit(tmp_path, ["code"]) == f"{first}+changes"
    assert last_commit(tmp_path, ["code/a.py"]) == first


def test_a_shallow_clone_says_that_the_commit_may_be_an_earlier_one(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    git(source, "init", "--quiet")
    for name in ("old", "new"):
        (source / name).write_text(name)
        commit(source, name)
    git(tmp_path, "clone", "--quiet", "--depth", "1", source.as_uri(), "shallow")
    head = git(source, "rev-parse", "HEAD").strip()
    assert last_commit(tmp_path / "shallow", ["old"]) == (
        f"{head} or one before it, which this shallow clone does not hold"
    )
    git(tmp_path / "shallow", "fetch", "--quiet", "--unshallow")
    assert last_commit(tmp_path / "shallow", ["old"]) == git(source, "rev-parse", "HEAD~1").strip()


def test_a_file_whose_name_is_no_text_is_told_as_python_names_it(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    name = os.fsdecode(b"caf\xe9.txt")
    (tmp_path / name).write_text("1")
    commit(tmp_path, "a name of another encoding")
    (tmp_path / name).write_text("2")
    state = git_state(tmp_path)
    assert state.changed == (name,) and (tmp_path / state.changed[0]).read_text() == "2"


def test_a_repository_of_somebody_else_is_not_taken_for_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git(tmp_path, "init", "--quiet")
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")  # Git's own switch
    named = rf"belongs to another user.*git config --global --add safe\.directory {tmp_path}`"
    for ask in (git_state, refuse_unreadable, lambda root: last_commit(root, ["x"])):
        with pytest.raises(UserError, match=named):
            ask(tmp_path)


def test_a_folder_without_git_is_one_line_with_both_ways_out(tmp_path: Path) -> None:
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").touch()
    (tmp_path / "dvc.yaml").write_text("stages: {only: {cmd: 'true', desc: one}}\n")
    with pytest.raises(UserError, match=r"DVC wants a Git repository; `git init .*core\.no_scm true`"):
        load_jobs(preset("smoke"), tmp_path)
    (tmp_path / ".dvc" / "config.local").write_text("[core]\n    no_scm = true\n")
    assert [job.description for job in load_jobs(preset("smoke"), tmp_path).values()] == ["one"]


def test_line_ends_are_those_of_the_commit_whatever_git_is_told(tmp_path: Path) -> None:
    for name in (".gitattributes", "dvc.yaml"):
        shutil.copy(name, tmp_path / name)
    (tmp_path / "picture.png").write_bytes(b"a\r\nb\n")
    git(tmp_path, "init", "--quiet")
    commit(tmp_path, "files")
    git(tmp_path, "-c", "core.autocrlf=true", "clone", "--quiet", str(tmp_path), str(tmp_path / "clone"))
    for name in ("dvc.yaml", "picture.png"):
        assert (tmp_path / "clone" / name).read_bytes() == (tmp_path / name).read_bytes()
