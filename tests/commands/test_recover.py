"""`rtdmd recover`: damage in DVC's records goes, with the results that came from it, and nothing that is whole."""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from rtdmd import cli
from rtdmd.cli import main
from rtdmd.common import files
from rtdmd.common.errors import UserError
from rtdmd.config import load_params
from rtdmd.pipeline.dvc_cache import md5_file, object_path, refuse_damaged

WHOLE, DAMAGED = "results/a/whole.txt", "results/a/weights.txt"
PIPELINE = {"stages": {"a": {"cmd": "rtdmd a", "outs": [WHOLE, DAMAGED]}}}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two results, their record and their cache, one object of which lost its end; the result was restored from it."""
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump(PIPELINE))
    record = []
    for path in (WHOLE, DAMAGED):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(f"what {path} holds\n")
        digest = md5_file(tmp_path / path)
        object_path(tmp_path, digest).parent.mkdir(parents=True)
        object_path(tmp_path, digest).write_bytes((tmp_path / path).read_bytes())
        record.append({"path": path, "md5": digest})
    write_record(tmp_path, record)
    damaged = object_path(tmp_path, record[1]["md5"])
    damaged.write_bytes(damaged.read_bytes()[:10])
    damaged.chmod(0o444)
    (tmp_path / DAMAGED).write_bytes(damaged.read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_record(root: Path, outs: list[dict[str, str]]) -> None:
    (root / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": {"a": {"cmd": "rtdmd a", "outs": outs}}}))


def all_files(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


def test_a_damaged_object_goes_with_its_result_and_nothing_else(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = all_files(root)
    lost = {path for path in before if (root / path).stat().st_size == 10}
    assert len(lost) == 2
    with pytest.raises(UserError, match=f"{DAMAGED}: DVC's cache gave it damaged .*`rtdmd recover`"):
        refuse_damaged(root, [WHOLE, DAMAGED])
    assert main(["recover"]) == 0
    assert all_files(root) == before - lost
    assert capsys.readouterr().out.count("removed") == 2
    assert main(["recover"]) == 0
    assert capsys.readouterr().out.startswith("nothing to mend")


def test_a_result_that_was_merely_edited_is_not_refused(root: Path) -> None:
    (root / DAMAGED).write_text("something else\n")
    refuse_damaged(root, [WHOLE, DAMAGED, "absent"])


def test_records_cut_off_are_mended(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = (root / "dvc.lock").read_text()
    subprocess.run(["git", "init", "--quiet"], check=True)
    subprocess.run(["git", "add", "dvc.lock"], check=True)
    subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "lock"], check=True)
    for torn in ("", whole[: len(whole) // 2], "stages:\n  a: {"):
        (root / "dvc.lock").write_text(torn)
        assert main(["recover"]) == 0
        assert (root / "dvc.lock").read_text() == whole
    (root / ".dvc/tmp").mkdir()
    (root / ".dvc/tmp/rwlock").write_text('{"write": {"/results')
    assert main(["recover"]) == 0
    assert not (root / ".dvc/tmp/rwlock").exists()
    assert ".dvc/tmp/rwlock: cut off" in capsys.readouterr().out


def test_locks_of_processes_that_ended_go_and_a_living_dvc_is_respected(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lock = root / ".dvc/tmp/rwlock"
    lock.parent.mkdir()
    lock.write_text('{"write": {}, "read": {}}')
    assert main(["recover"]) == 0
    assert lock.exists()
    for how, code in (("import time; time.sleep(60)", 0), ("import time; time.sleep(60)  # dvc repro", 2)):
        with subprocess.Popen([sys.executable, "-c", how]) as other:
            entry = {"pid": other.pid, "cmd": "dvc repro"}
            lock.write_text(json.dumps({"write": {"/results/a": entry}, "read": {"/data": [entry]}}))
            assert main(["recover"]) == code
            assert lock.exists() is bool(code)
            other.kill()
    assert main(["recover"]) == 0
    assert not lock.exists()
    assert "DVC runs as process" in capsys.readouterr().err


def test_it_does_nothing_while_a_stage_is_at_work(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / ".rtdmd/locks").mkdir(parents=True)
    with (root / ".rtdmd/locks/a").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = all_files(root)
        assert main(["recover"]) == 2
        assert all_files(root) == before
    assert "is held by a running process" in capsys.readouterr().err


def test_a_full_disk_is_one_line(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(cli.DISK_FULL[0], "No space left on device", "results/a/whole.txt")

    monkeypatch.setattr("rtdmd.commands.recover.run", full)
    assert main(["recover"]) == 1
    said = capsys.readouterr().err
    assert "No space left on device: 'results/a/whole.txt'; free some space" in said
    assert said.count("\n") == 1


def test_damaged_files_are_named(root: Path) -> None:
    (root / "w.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    with pytest.raises(UserError, match=r"w\.safetensors: no whole safetensors file"):
        files.load_tensors(root / "w.safetensors")
    (root / "params.yaml").write_bytes(b"run: \xff")
    with pytest.raises(UserError, match=r"params\.yaml: cannot be read .*`git checkout"):
        load_params(root / "params.yaml")
