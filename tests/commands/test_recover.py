"""`rtdmd recover`: damage in DVC's records goes, with the results that came from it, and nothing that is whole."""

from __future__ import annotations

import fcntl
import hashlib
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
from rtdmd.common.files import md5_file
from rtdmd.config import load_params
from rtdmd.pipeline.dvc_cache import object_path, refuse_damaged, refuse_truncated
from rtdmd.pipeline.dvc_repo import cache_folder, read_record

WHOLE, DAMAGED = "results/a/whole.txt", "results/a/weights.txt"
PIPELINE = {"stages": {"a": {"cmd": "rtdmd a", "outs": [WHOLE, DAMAGED]}}}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two results, their record and their cache, one object of which lost its end; the result was restored from it."""
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump(PIPELINE))
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").write_text("[core]\n    no_scm = true\n")
    cache = cache_folder(tmp_path)
    record = []
    for path in (WHOLE, DAMAGED):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(f"what {path} holds\n")
        digest = md5_file(tmp_path / path)
        keep(cache, (tmp_path / path).read_bytes())
        record.append({"path": path, "md5": digest})
    write_record(tmp_path, record)
    damaged = object_path(cache, record[1]["md5"])
    damaged.write_bytes(damaged.read_bytes()[:10])
    damaged.chmod(0o444)
    (tmp_path / DAMAGED).write_bytes(damaged.read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def keep(cache: Path, data: bytes) -> Path:
    """An object of DVC's cache."""
    path = object_path(cache, hashlib.md5(data).hexdigest())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def write_record(root: Path, outs: list[dict[str, str]]) -> None:
    (root / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": {"a": {"cmd": "rtdmd a", "outs": outs}}}))


def all_files(root: Path) -> set[str]:
    """All but what DVC keeps for itself while it is asked."""
    found = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    return {path for path in found if not path.startswith((".dvc/tmp/", ".dvc/.gitignore"))}


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


def test_what_is_whole_stays_whatever_content_it_shares_with_the_damage(root: Path) -> None:
    """The damage is the start of a result, and may be a whole result of another name: an empty table, a short log. A
    stray file in the cache is no object, whatever it holds."""
    cache = cache_folder(root)
    damage = (root / DAMAGED).read_bytes()
    same = root / "results/a/short.txt"
    same.write_bytes(damage)
    good = keep(cache, damage)
    digests = [md5_file(root / WHOLE), hashlib.md5(f"what {DAMAGED} holds\n".encode()).hexdigest(), md5_file(same)]
    paths = (WHOLE, DAMAGED, "results/a/short.txt")
    write_record(root, [{"path": path, "md5": digest} for path, digest in zip(paths, digests, strict=True)])
    stray = [cache / "ab" / name for name in ("upload.tmp", f".{'c' * 30}.x", "c" * 31, "c" * 29)]
    for path in stray:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes((root / WHOLE).read_bytes())
    before = all_files(root)
    assert main(["recover"]) == 0
    gone = {DAMAGED, object_path(cache, digests[1]).relative_to(root).as_posix()}
    assert all_files(root) == before - gone
    assert good.read_bytes() == same.read_bytes() == damage
    assert main(["recover"]) == 0
    assert all_files(root) == before - gone


@pytest.mark.parametrize("where", ["/elsewhere/cache", "../a cache", "~/kept"])
@pytest.mark.parametrize("level", ["repo", "local", "global"])
def test_a_damaged_object_is_found_wherever_dvc_keeps_it(
    level: str, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The folder is DVC's setting: quoted, relative to its own file, of the user. A truncated object is refused by
    Snakemake's start and by the stage that reads it, and recovered."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DVC_GLOBAL_CONFIG_DIR", str(tmp_path / "user"))
    root = tmp_path / "root"
    config = {"repo": root / ".dvc/config", "local": root / ".dvc/config.local", "global": tmp_path / "user/config"}
    (root / ".dvc").mkdir(parents=True)
    (root / ".dvc/config").write_text("[core]\n    no_scm = true\n")
    config[level].parent.mkdir(exist_ok=True)
    value = where.replace("/elsewhere", str(tmp_path / "elsewhere"))
    with config[level].open("a") as file:
        file.write(f'[cache]\n    dir = "{value}"\n')
    cache = cache_folder(root)
    expected = tmp_path / "home/kept" if where.startswith("~") else (config[level].parent / value).resolve()
    assert cache.resolve() == expected / "files/md5"
    (root / "dvc.yaml").write_text(yaml.safe_dump(PIPELINE))
    (root / "results/a").mkdir(parents=True)
    (root / WHOLE).write_text("whole\n")
    (root / DAMAGED).write_text("weights\n")
    objects = [keep(cache, (root / path).read_bytes()) for path in (WHOLE, DAMAGED)]
    outs = [{"path": path, "md5": md5_file(root / path), "size": 6 + 2 * n} for n, path in enumerate((WHOLE, DAMAGED))]
    write_record(root, outs)
    refuse_truncated(root)
    objects[1].write_bytes(b"wei")
    (root / DAMAGED).write_bytes(b"wei")
    with pytest.raises(UserError, match=r"weights.txt, is damaged \(3 bytes of 8\); `rtdmd recover`, then"):
        refuse_truncated(root)
    with pytest.raises(UserError, match=f"{DAMAGED}: DVC's cache gave it damaged"):
        refuse_damaged(root, [DAMAGED])
    monkeypatch.chdir(root)
    assert main(["recover"]) == 0
    assert capsys.readouterr().out.count("removed") == 2
    assert [path.exists() for path in (*objects, root / WHOLE, root / DAMAGED)] == [True, False, True, False]


def test_a_result_that_was_merely_edited_is_not_refused(root: Path) -> None:
    (root / DAMAGED).write_text("something else\n")
    refuse_damaged(root, [WHOLE, DAMAGED, "absent"])


def torn_records(whole: str) -> list[str]:
    """What a kill, a full disk, an editor or a merge may leave: nothing, half of it, all up to the end of a line inside
    an entry, a stage twice, the marks of a merge."""
    lines = whole.splitlines(keepends=True)
    middle = next(i for i, line in enumerate(lines) if "path:" in line and "md5:" not in line)
    stages = "".join(lines[lines.index("stages:\n") + 1 :])
    return [
        "",
        "\n",
        whole[: len(whole) // 2],
        whole.rstrip("\n"),
        "stages:\n  a: {",
        "schema: '2.0'\nstages:\n- a\n",
        "".join(lines[: middle - 1]) + "    - path: results/a/weights.txt\n",
        whole + stages,
        f"<<<<<<< HEAD\n{whole}=======\n{whole}>>>>>>> theirs\n",
        whole.replace("md5: ", "md5: z"),
        "\x00" * 100,
    ]


def test_records_cut_off_are_mended(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = (root / "dvc.lock").read_text()
    subprocess.run(["git", "init", "--quiet"], check=True)
    subprocess.run(["git", "add", "dvc.lock"], check=True)
    subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "lock"], check=True)
    for torn in torn_records(whole):
        (root / "dvc.lock").write_text(torn)
        with pytest.raises(UserError, match=r"^dvc.lock: not a whole record of DVC \(.+\); `rtdmd recover`, then"):
            read_record(Path("."))
        assert main(["recover"]) == 0
        assert (root / "dvc.lock").read_text() == whole
        assert list(read_record(root)) == ["a"]
    (root / ".dvc/tmp").mkdir(exist_ok=True)
    (root / ".dvc/tmp/rwlock").write_text('{"write": {"/results')
    assert main(["recover"]) == 0
    assert not (root / ".dvc/tmp/rwlock").exists()
    assert ".dvc/tmp/rwlock: cut off" in capsys.readouterr().out


def test_locks_of_processes_that_ended_go_and_a_living_dvc_is_respected(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lock = root / ".dvc/tmp/rwlock"
    lock.parent.mkdir(exist_ok=True)
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
    with pytest.raises(UserError, match=r"w\.safetensors: not a complete safetensors file"):
        files.load_tensors(root / "w.safetensors")
    (root / "params.yaml").write_bytes(b"run: \xff")
    with pytest.raises(UserError, match=r"params\.yaml:1: not UTF-8"):
        load_params(root / "params.yaml")
