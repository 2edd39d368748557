"""Where a result comes from: versions, Git commit, hashes, class of hardware."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import rtdmd
from rtdmd.common.errors import UserError
from rtdmd.common.processes import QUESTION_SECONDS, limited

PACKAGES = ("torch", "diffusers", "transformers", "peft", "safetensors", "numpy")
"""Packages whose version can change a result."""


def package_versions() -> dict[str, str]:
    """Versions of Python, of this package and of those it computes with."""
    return {
        "python": platform.python_version(),
        "rtdmd": rtdmd.__version__,
        **{name: version(name) for name in PACKAGES},
    }


def last_commit(root: Path | str, paths: Sequence[str]) -> str | None:
    """The last commit that changed one of `paths`, with "+changes" when they differ from it here; None outside a Git
    checkout. Unlike the commit that is checked out it is the same before and after results are committed. A shallow
    clone may not hold it, and says so."""
    commit = _git(root, "log", "-1", "--format=%H", "--", *paths)
    if not commit:
        return None
    if commit in _ends_of_history(root):
        return f"{commit} or one before it, which this shallow clone does not hold"
    return f"{commit}+changes" if _git(root, "status", "--porcelain", "--", *paths) else commit


def is_shallow(root: Path | str) -> bool:
    """Whether the checkout lacks the commits before some of its own."""
    return _git(root, "rev-parse", "--is-shallow-repository") == "true"


def _ends_of_history(root: Path | str) -> set[str]:
    """The commits of a shallow clone whose parents it does not hold: Git shows all of their files as new in them."""
    if not is_shallow(root):
        return set()
    found = _git(root, "rev-parse", "--git-path", "shallow") or ""
    return set((Path(root) / found).read_text(encoding="ascii").split())


def refuse_unreadable(root: Path | str) -> None:
    """UserError where Git does not let this user read the repository that `root` lies in."""
    _git(root, "rev-parse", "--git-dir")


@dataclass(frozen=True)
class GitState:
    """What is checked out: the commit (None outside a Git checkout), and the paths that it does not hold as they are
    here."""

    commit: str | None
    changed: tuple[str, ...]


def git_state(root: Path | str = ".", watched: Sequence[str] = ()) -> GitState:
    """The state of the checkout in ``root``: every tracked file that differs from the commit counts (dvc.lock and
    results too), and every file inside a path of ``watched`` that Git does not track."""
    commit = _git(root, "rev-parse", "HEAD")
    if commit is None:
        return GitState(None, ())
    tracked = _git(root, "status", "--porcelain", "--untracked-files=no", "--no-renames", "-z") or ""
    changed = {entry[3:] for entry in tracked.split("\0") if entry}
    if watched:
        untracked = _git(root, "ls-files", "--others", "--exclude-standard", "-z", "--", *watched) or ""
        changed |= {path for path in untracked.split("\0") if path}
    return GitState(commit.strip(), tuple(sorted(changed)))


def hardware_class() -> dict[str, Any]:
    """What kind of machine this is, without its name: architecture, processor, cores, accelerators."""
    return {
        "machine": platform.machine(),
        "system": platform.system(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "accelerators": (_run(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], ".") or "").splitlines(),
    }


def _processor() -> str:
    """The processor's model name as Linux gives it, elsewhere as Python does."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _git(root: Path | str, *arguments: str) -> str | None:
    return _run(["git", *arguments], root)


def _run(command: list[str], root: Path | str) -> str | None:
    """A program's output; None when it is not installed or fails. UserError where Git takes the folder for somebody
    else's, which is not the same as none; RtdmdError where the program hangs."""
    try:
        with limited(f"it asks about {Path(root).resolve()}: when it answers there, run this command again"):
            done = subprocess.run(
                command,
                cwd=root,
                env=os.environ | {"LC_ALL": "C"},
                capture_output=True,
                encoding="utf-8",
                errors="surrogateescape",  # as Python names such files itself
                check=False,
                timeout=QUESTION_SECONDS,
            )
    except FileNotFoundError:
        return None
    if "dubious ownership" in done.stderr:
        raise UserError(
            f"{Path(root).resolve()} belongs to another user, and Git does not read it: `git config --global --add"
            f" safe.directory {shlex.quote(str(Path(root).resolve()))}`, if you trust them"
        )
    return done.stdout.rstrip() if done.returncode == 0 else None
