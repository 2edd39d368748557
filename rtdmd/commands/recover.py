"""`rtdmd recover`: put right what a kill, a full disk or a bad disk left in DVC's records.

Three things that DVC does not mend itself: a list of locks (`.dvc/tmp/rwlock`) that is cut off, or names a process
number that is in use again; a `dvc.lock` that is cut off, or holds the marks of a merge; and objects of the cache that
no longer hold what their name says (DVC trusts them, and hands them out as results). What is damaged is removed, with
the results that came from it by dvc.lock; nothing whole is touched, and the next `snakemake --cores all` or
`dvc repro` makes the rest again.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil

from rtdmd.common.errors import UserError
from rtdmd.common.files import md5_file, write_atomic
from rtdmd.common.processes import QUESTION_SECONDS, limited
from rtdmd.pipeline.dvc_cache import damaged_objects, digest_of, recorded_outs
from rtdmd.pipeline.dvc_repo import LOCK, cache_folder, parse_lock

RWLOCK = ".dvc/tmp/rwlock"


def run(_: argparse.Namespace, root: Path = Path(".")) -> None:
    """Mend `root` and say what was done. UserError while a stage or DVC is at work there."""
    if not (root / ".dvc").is_dir():
        raise UserError(f"{root / '.dvc'}: no such folder; run this command in the repository's root folder")
    with _nothing_at_work(root):
        found = [*_stale_rwlock(root), *_torn_record(root), *_damaged_objects(root)]
    print("\n".join(found) or "nothing to mend; the run's own command goes on from here")


@contextmanager
def _nothing_at_work(root: Path) -> Iterator[None]:
    """Hold the locks of DVC and of every stage, so that none begins meanwhile."""
    with ExitStack() as stack:
        for lock in (root / ".dvc/tmp/lock", *sorted((root / ".rtdmd/locks").glob("*"))):
            if not lock.is_file():
                continue
            file = stack.enter_context(lock.open("rb"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(f"{lock} is held by a running process; wait for its end, or stop it first") from error
        yield


def _stale_rwlock(root: Path) -> Iterator[str]:
    """DVC's list of who reads and writes what: written in place, so that half of it may be there, and kept by process
    numbers, which another process may have by now. UserError where one of them is DVC's."""
    path = root / RWLOCK
    if not path.is_file():
        return
    try:
        owners = {int(one["pid"]) for one in _leaves(json.loads(path.read_bytes()))}
    except (ValueError, TypeError, RecursionError):
        path.unlink()
        yield f"{RWLOCK}: cut off; removed, since nothing is running"
        return
    for pid in owners:
        if _is_dvc(pid):
            raise UserError(f"{RWLOCK}: DVC runs as process {pid}; wait for its end, or stop it first")
    if owners:
        path.unlink()
        yield f"{RWLOCK}: of processes that ended ({', '.join(map(str, sorted(owners)))}); removed"


def _is_dvc(pid: int) -> bool:
    try:
        return any("dvc" in word for word in psutil.Process(pid).cmdline()[:3])
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return False


def _leaves(value: Any) -> Iterator[dict[str, Any]]:
    """The dictionaries with a `pid`, wherever they are."""
    if isinstance(value, dict) and "pid" in value:
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _leaves(inner)


def _torn_record(root: Path) -> Iterator[str]:
    """dvc.lock is written in place too; what it said since the last commit comes back from DVC's run cache."""
    path = root / LOCK
    if not path.is_file():
        return
    fault = _fault(path.read_bytes())
    if fault is None:
        return
    command = ["git", "show", "HEAD:./dvc.lock"]
    with limited(f"when it answers in {root.resolve()}, run `rtdmd recover` again"):
        committed = subprocess.run(command, cwd=root, capture_output=True, check=False, timeout=QUESTION_SECONDS)
    if committed.returncode == 0 and _fault(committed.stdout) is None:
        write_atomic(path, committed.stdout)
        yield f"{fault}: the committed one is back (after a merge: this side's; then `git add dvc.lock`)"
    else:
        path.unlink()
        yield f"{fault}: removed (no whole one is committed)"


def _fault(data: bytes) -> str | None:
    """Why these bytes are no whole record, None where they are one."""
    try:
        parse_lock(data)
    except UserError as error:
        return str(error).rpartition("; ")[0]
    return None


def _damaged_objects(root: Path) -> Iterator[str]:
    """Objects whose MD5 is not their name go, and with them the results that dvc.lock calls by that name and that hold
    the damage. Whole files with the same content stay: results of another name, and the object of that content."""
    cache = cache_folder(root)
    damaged = {digest_of(path): path for path in damaged_objects(cache)}
    if not damaged:
        return
    lock = root / LOCK
    outs = recorded_outs(parse_lock(lock.read_bytes())) if lock.is_file() else {}
    for path, out in outs.items():
        origin = damaged.get(out["md5"])
        if origin is not None and (root / path).is_file() and md5_file(root / path) == md5_file(origin):
            (root / path).unlink()
            yield f"{path}: came from the damaged {origin}; removed"
    for source in damaged.values():
        source.unlink()
        yield f"{source}: damaged; removed, the next run makes it again"
