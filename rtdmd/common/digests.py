"""Digests of large files, each read once: what was found is kept below `.rtdmd/hashes`.

A file counts as unchanged while its place, size, number and times (of content and of status) are what they were. Times
have steps, so a file that was written just before it was read may change again without a trace: its digest is not kept
(Git calls such an entry of its index racy). Files that prove something, as an upload's, are read anew all the same.
"""

from __future__ import annotations

import fcntl
import os
import time
from functools import partial
from pathlib import Path

from rtdmd.common.files import Algorithm, file_digest, lock_file, sha256_bytes, sha256_tree, write_atomic

FOLDER = ".rtdmd/hashes"
LARGE = 64 * 2**20  # bytes: below it a file is read each time
TIME_STEP = 2 * 10**9  # nanoseconds: FAT's, the coarsest of the file systems in use


def cached_digest(path: Path, root: Path, algorithm: Algorithm = "sha256") -> str:
    """Hex digest of a file; that of a large one is kept below ``root``, so that it is read once by all stages and
    processes. One that another process is reading is waited for."""
    about = path.stat()
    if about.st_size < LARGE:
        return file_digest(path, algorithm)
    kept = root / FOLDER / sha256_bytes(f"{algorithm} {path.resolve()}".encode())
    if (known := _known(kept, about)) is not None:
        return known
    with lock_file(kept.with_suffix(".lock")) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        about = path.stat()
        if (known := _known(kept, about)) is not None:
            return known
        began = time.time_ns()
        digest = file_digest(path, algorithm)
        settled = max(about.st_mtime_ns, about.st_ctime_ns) < began - TIME_STEP
        if settled and _stamp(path.stat()) == _stamp(about):
            write_atomic(kept, f"{_stamp(about)} {digest}\n")
    return digest


def cached_tree_digest(path: Path, root: Path) -> str:
    """`sha256_tree` with the digests of large files as they are kept below ``root``."""
    return sha256_tree(path, partial(cached_digest, root=root))


def share_digests(root: Path, other: Path) -> None:
    """Let ``root`` keep its digests where ``other`` does, unless it has some of its own."""
    here = root / FOLDER
    if here.exists():
        return
    there = (other / FOLDER).resolve()
    there.mkdir(parents=True, exist_ok=True)
    here.parent.mkdir(parents=True, exist_ok=True)
    here.symlink_to(there)


def _known(kept: Path, about: os.stat_result) -> str | None:
    """The digest that is kept for a file that is still as it was; None where there is none."""
    if not kept.is_file():
        return None
    stamp, _, digest = kept.read_text(encoding="ascii").strip().rpartition(" ")
    return digest if stamp == _stamp(about) else None


def _stamp(about: os.stat_result) -> str:
    return f"{about.st_size} {about.st_ino} {about.st_mtime_ns} {about.st_ctime_ns}"
