"""Where a result comes from: versions, Git commit, hashes."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import rtdmd
from rtdmd.files import json_text, sha256_bytes

PACKAGES = ("torch", "diffusers", "transformers", "peft", "safetensors", "numpy")
"""Packages whose version can change a result."""


def package_versions() -> dict[str, str]:
    """Versions of Python, of this package and of those it computes with."""
    return {
        "python": platform.python_version(),
        "rtdmd": rtdmd.__version__,
        **{name: version(name) for name in PACKAGES},
    }


def git_commit(root: Path | str = ".") -> str | None:
    """The checked-out commit, with "+changes" when tracked files differ from it; None outside a Git checkout.

    Files under results/ do not count: they are what the run itself writes.
    """
    commit = _git(root, "rev-parse", "HEAD")
    if commit is None:
        return None
    status = _git(
        root, "status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)results", ":(exclude)dvc.lock"
    )
    return f"{commit}+changes" if status else commit


def _git(root: Path | str, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)
    except FileNotFoundError:  # no git on this machine: a result has no commit then
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def hash_of(value: Any) -> str:
    """Hex SHA-256 of a value's canonical JSON (sorted keys), so that comments and order do not count."""
    return sha256_bytes(json_text(value).encode())
