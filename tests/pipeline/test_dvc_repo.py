"""DVC's own files: read while nobody writes them, and every fault in them is one line with a command that works."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zc.lockfile
from dvc.repo import Repo

from rtdmd.common.errors import UserError
from rtdmd.common.files import md5_file
from rtdmd.pipeline.dvc_cache import object_path
from rtdmd.pipeline.dvc_repo import opened, parse_lock, read_record
from rtdmd.pipeline.engines import Job, end_future, stale_stages, with_readers
from rtdmd.pipeline.reproduce import find_recorded

pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep:DeprecationWarning")  # DVC's own
PIPELINE = """
stages:
  one:
    cmd: cp code.txt one.txt
    deps: [code.txt]
    outs: [one.txt]
  two:
    cmd: cp one.txt two.txt
    deps: [one.txt]
    outs: [two.txt]
"""
JOBS = {
    "one": Job("one", "", ["code.txt"], ["one.txt"]),
    "two": Job("two", "", ["one.txt"], ["two.txt"]),
}
MARKS = "<<<<<<< HEAD\n{0}=======\n{0}>>>>>>> theirs\n"


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small pipeline that DVC ran, committed."""
    root = tmp_path_factory.mktemp("ran")
    (root / "dvc.yaml").write_text(PIPELINE)
    (root / "code.txt").write_text("code\n")
    subprocess.run(["git", "init", "--quiet"], cwd=root, check=True)
    here = Path.cwd()
    os.chdir(root)
    try:
        Repo.init(str(root)).close()
        with Repo(str(root)) as repo:
            repo.reproduce()
    finally:
        os.chdir(here)
    who = ("-c", "user.name=t", "-c", "user.email=t@t", "-c", "commit.gpgsign=false")
    subprocess.run(["git", "add", "--all"], cwd=root, check=True)
    subprocess.run(["git", *who, "commit", "--quiet", "--message", "ran"], cwd=root, check=True)
    return root


@pytest.fixture
def root(ran: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The same folder, put back afterwards."""
    monkeypatch.chdir(ran)
    kept = {path: (ran / path).read_bytes() for path in ("dvc.yaml", "dvc.lock", "code.txt", ".dvc/config", "one.txt")}
    yield ran
    for path, data in kept.items():
        (ran / path).write_bytes(data)
    (ran / ".dvc/config.local").unlink(missing_ok=True)


def test_dvcs_verdict_and_nothing_else_says_what_is_stale(root: Path) -> None:
    def times() -> dict[Path, int]:
        found = [path for path in root.rglob("*") if path.is_file() and ".dvc/tmp" not in path.as_posix()]
        return {path: path.stat().st_mtime_ns for path in found}

    assert stale_stages(JOBS, root) == {}
    for when in (640_000_000, time.time() + 86_400):
        for path in ("code.txt", "one.txt", "two.txt"):
            os.utime(root / path, (when, when))
        before = times()
        assert stale_stages(JOBS, root) == {}
        assert times() == before
    (root / "code.txt").write_text("other\n")
    assert stale_stages(JOBS, root) == {"one": "changed deps: code.txt", "two": "after one"}


def test_a_folder_without_git_says_what_to_set(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an archive of the repository leaves it."""
    from dvc.cli import main

    for path in ("dvc.yaml", "dvc.lock", ".dvc/config", "code.txt", "one.txt", "two.txt"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes((root / path).read_bytes())
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"`dvc config --local core.no_scm true` lets DVC do without"):
        read_record(tmp_path)
    assert main(["config", "--local", "core.no_scm", "true"]) == 0
    assert list(read_record(tmp_path)) == ["one", "two"]
    assert "one" in stale_stages(JOBS, tmp_path)  # its cache did not come with it


def test_who_reads_from_whom() -> None:
    jobs = JOBS | {
        "three": Job("three", "", ["two.txt", "code.txt"], ["three.txt"]),
        "four": Job("four", "", [], ["x"]),
    }
    assert with_readers(jobs, ["one"]) == {"one", "two", "three"}
    assert with_readers(jobs, ["two", None, "all"]) == {"two", "three"}
    assert with_readers(jobs, []) == set()


def test_reproduce_finds_the_recorded_file_where_dvc_keeps_it(root: Path, tmp_path: Path) -> None:
    (root / ".dvc/config.local").write_text(f'[cache]\n    dir = "{tmp_path}/a cache"\n')
    digest = md5_file(root / "one.txt")
    kept = object_path(tmp_path / "a cache/files/md5", digest)
    kept.parent.mkdir(parents=True)
    kept.write_bytes((root / "one.txt").read_bytes())
    (root / "one.txt").write_text("edited")
    (tmp_path / "clone").mkdir()
    assert find_recorded("one.txt", digest, root, tmp_path / "clone") == kept


def test_results_of_a_clock_that_is_ahead_get_the_time_of_now(root: Path, tmp_path: Path) -> None:
    target = tmp_path / "object"
    target.write_text("of the cache")
    late = time.time() + 1000
    (tmp_path / "benchmarks").mkdir()
    for name in ("one.txt", "benchmarks/two.tsv", "code.txt"):
        (tmp_path / name).write_text("")
        os.utime(tmp_path / name, (late, late))
    (tmp_path / "two.txt").symlink_to(target)
    os.utime(target, (late, late))
    os.utime(tmp_path / "two.txt", (late, late), follow_symlinks=False)
    end_future(JOBS, tmp_path)
    now = time.time()
    assert [(tmp_path / name).lstat().st_mtime <= now for name in ("one.txt", "two.txt", "benchmarks/two.tsv")] == [
        True,
        True,
        True,
    ]
    assert target.stat().st_mtime == pytest.approx(late)
    assert (tmp_path / "code.txt").stat().st_mtime == pytest.approx(late)  # the user's own


def test_the_record_is_read_while_nobody_writes_it(root: Path) -> None:
    """A writer holds DVC's lock, as DVC does, and has written half of it: the reader waits for the whole one."""
    whole = (root / "dvc.lock").read_bytes()
    lock = zc.lockfile.LockFile(str(root / ".dvc/tmp/lock"))
    (root / "dvc.lock").write_bytes(whole[: len(whole) // 2])
    found: list[list[str]] = []
    reader = threading.Thread(target=lambda: found.append(list(read_record(root))))
    reader.start()
    reader.join(0.3)
    assert reader.is_alive()
    (root / "dvc.lock").write_bytes(whole)
    lock.close()
    reader.join(10)
    assert found == [["one", "two"]]


FAULTS = {
    "dvc.lock": ["", MARKS, "{0}  two:\n    cmd: x\n", "stages: ]\n", "\x00\n"],
    "dvc.yaml": [MARKS, "stages: [1\n", "stages:\n  one:\n    cdm: x\n", "stages: [1]\n"],
    ".dvc/config": ["[core\n", MARKS, "[core]\n    nosuch = 1\n", '[cache]\n    type = "nothing"\n'],
    ".dvc/config.local": ["[core\n", "[cache]\n    nosuch = 1\n"],
}
WAYS = {
    "dvc.lock": "`rtdmd recover`",
    "dvc.yaml": "`git checkout dvc.yaml`",
    ".dvc/config": "`git checkout .dvc/config`",
    ".dvc/config.local": "`rm .dvc/config.local`",
}


@pytest.mark.parametrize(("path", "text"), [(path, text) for path, texts in FAULTS.items() for text in texts])
def test_a_broken_file_of_dvc_is_one_line_whose_command_works(path: str, text: str, root: Path) -> None:
    was = (root / path).read_text() if (root / path).is_file() else ""
    (root / path).write_text(text.format(was))
    with pytest.raises(UserError) as error, opened(root) as repo:
        assert repo.index.stages
        parse_lock((root / "dvc.lock").read_bytes())
    said = str(error.value)
    assert said.count("\n") == 0
    assert path.removeprefix("./") in said
    assert WAYS[path] in said
    command = WAYS[path].strip("`")
    if command == "rtdmd recover":
        from rtdmd.cli import main

        assert main(["recover"]) == 0
    else:
        subprocess.run(command.split(), check=True, capture_output=True)
    with opened(root) as repo:
        assert [stage.name for stage in repo.index.stages] == ["one", "two"]
    assert list(read_record(root)) == ["one", "two"]
