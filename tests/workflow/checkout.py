"""A checkout of the working tree with the smoke parameters, and the engines' commands in it, as a user gives them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from rtdmd.config import preset
from rtdmd.config.render import params_text

REPOSITORY = Path(__file__).parents[2]
WHO = ("-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "commit.gpgsign=false")


def make_checkout(root: Path, changes: dict[str, Any] | None = None) -> Path:
    """What Git has or would take of this repository, without results, committed at `root` with smoke parameters."""
    listed = git(REPOSITORY, "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--deduplicate")
    for name in listed.split("\0"):
        source, made = REPOSITORY / name, name == "dvc.lock" or name.startswith("results/")
        if not made and (source.is_symlink() or source.is_file()):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, root / name, follow_symlinks=False)
    (root / "params.yaml").write_text(params_text(preset("smoke", changes), "a test"), encoding="utf-8")
    git(root, "init", "--quiet")
    commit(root, "smoke")
    return root


def commit(root: Path, message: str) -> None:
    """Commit all that Git would take in `root`."""
    git(root, "add", "--all")
    git(root, *WHO, "commit", "--quiet", "--message", message)


def clone(source: Path, root: Path) -> Path:
    """A fresh clone of `source`: no results but those in Git, no cache."""
    git(source, "clone", "--quiet", str(source), str(root))
    return root


def copy(source: Path, root: Path) -> Path:
    """All of `source`, with its cache, records and file times."""
    return Path(shutil.copytree(source, root, symlinks=True))


def git(root: Path, *arguments: str) -> str:
    """What Git says; CalledProcessError when it fails."""
    return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True).stdout


def environment(root: Path) -> dict[str, str]:
    """The surroundings of a command in `root`: the programs of this environment, the code of `root`."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"PATH": path, "PYTHONPATH": str(root), "GOMP_SPINCOUNT": "30000"}


def run(root: Path, *command: str, ok: bool = True) -> str:
    """Run a command in `root`; what it said on both streams. AssertionError when it ends otherwise than `ok` says."""
    done = subprocess.run(
        command,
        cwd=root,
        env=environment(root),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert (done.returncode == 0) is ok, f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-5000:]}"
    return done.stdout
