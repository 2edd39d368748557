"""`rtdmd recover`: put right what a kill, a full disk or a bad disk left in DVC's records.

Three things that DVC does not mend itself: a list of locks (`.dvc/tmp/rwlock`) that is cut off, or names a process
number that is in use again; a `dvc.lock` that is cut off; and objects of the cache that no longer hold what their name
says (DVC trusts them, and hands them out as results). What is damaged is removed, with the results that came from it;
nothing whole is touched, and the next `snakemake --cores all` or `dvc repro` makes the rest again.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import yaml

from rtdmd.common.errors import UserError
from rtdmd.common.files import write_atomic
from rtdmd.pipeline.dvc_cache import damaged_objects, md5_file, object_path
from rtdmd.pipeline.dvc_yaml import read_pipeline

RWLOCK = ".dvc/tmp/rwlock"


def run(_: argparse.Namespace, root: Path = Path(".")) -> None:
    """Mend `root` and say what was done. UserError while a stage or DVC is at work there."""
    pipeline = read_pipeline(root)
    _refuse_while_at_work(root)
    found = [*_stale_rwlock(root), *_torn_record(root)]
    found += _damaged_objects(root, [root / out for stage in pipeline.values() for out in stage.outs])
    print("\n".join(found) or "nothing to mend; the run's own command goes on from here")


def _refuse_while_at_work(root: Path) -> None:
    for lock in (root / ".dvc/tmp/lock", *sorted((root / ".rtdmd/locks").glob("*"))):
        if not lock.is_file():
            continue
        with lock.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(f"{lock} is held by a running process; wait for its end, or stop it first") from error


def _stale_rwlock(root: Path) -> Iterator[str]:
    """DVC's list of who reads and writes what: written in place, so that half of it may be there, and kept by process
    numbers, which another process may have by now. UserError where one of them is DVC's."""
    path = root / RWLOCK
    if not path.is_file():
        return
    try:
        entries = json.loads(path.read_bytes())
    except ValueError:
        path.unlink()
        yield f"{RWLOCK}: cut off; removed, since nothing is running"
        return
    owners = {one["pid"] for one in _leaves(entries)}
    for pid in owners & set(psutil.pids()):
        if any("dvc" in word for word in psutil.Process(pid).cmdline()[:3]):
            raise UserError(f"{RWLOCK}: DVC runs as process {pid}; wait for its end, or stop it first")
    if owners:
        path.unlink()
        yield f"{RWLOCK}: of processes that ended ({', '.join(map(str, sorted(owners)))}); removed"


def _leaves(value: Any) -> Iterator[dict[str, Any]]:
    """The dictionaries with a `pid`, wherever they are."""
    if isinstance(value, dict) and "pid" in value:
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _leaves(inner)


def _torn_record(root: Path) -> Iterator[str]:
    """dvc.lock is written in place too; what it said since the last commit comes back from DVC's run cache."""
    path = root / "dvc.lock"
    if not path.is_file() or _is_record(path.read_bytes()):
        return
    command = ["git", "show", "HEAD:./dvc.lock"]
    committed = subprocess.run(command, cwd=root, capture_output=True, check=False)
    if committed.returncode == 0:
        write_atomic(path, committed.stdout)
        yield "dvc.lock: cut off; the committed one is back"
    else:
        path.unlink()
        yield "dvc.lock: cut off; removed (none is committed)"


def _is_record(data: bytes) -> bool:
    try:
        tree = yaml.safe_load(data)
    except (yaml.YAMLError, UnicodeDecodeError):
        return False
    return isinstance(tree, dict) and {"schema", "stages"} <= set(tree) and data.endswith(b"\n")


def _damaged_objects(root: Path, outputs: list[Path]) -> Iterator[str]:
    """Objects whose MD5 is not their name go, and with them every copy of the same bytes that was handed out."""
    damaged = {md5_file(path): path for path in damaged_objects(root)}
    for path in outputs:
        if damaged and path.is_file() and (source := damaged.get(md5_file(path))):
            path.unlink()
            yield f"{path.relative_to(root)}: came from the damaged {source}; removed"
    for digest, path in damaged.items():
        object_path(root, digest).unlink(missing_ok=True)  # the damage, kept under its true name
        path.unlink()
        yield f"{path}: damaged; removed, the next run makes it again"
