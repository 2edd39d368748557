"""What a small Hub stores: repositories, commits, files."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import unquote

DATASETS = "datasets/"
"""How the names of repositories of data sets begin, here as in the Hub's addresses."""
LARGE = frozenset({".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".onnx"})
"""Kinds of files that the Hub keeps in its store (LFS); any other file of a stand-in is small."""


class Blob(NamedTuple):
    """A file in a commit: its bytes, or the SHA-256 of the object in the store that it points to."""

    data: bytes | None = None
    lfs: str | None = None


@dataclass
class Repo:
    """A repository: commits by hash (message, parent, files), branches and tags. gated: only who has a token and has
    accepted the terms (``access``) reads its files."""

    private: bool = False
    gated: bool = False
    access: bool = True
    commits: dict[str, tuple[str, str | None, dict[str, Blob]]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def resolve(self, revision: str) -> str | None:
        """The commit of a branch, tag or commit hash."""
        name = unquote(revision)
        return self.branches.get(name) or self.tags.get(name) or (name if name in self.commits else None)


class Fetch(NamedTuple):
    """A file that was sent: its repository (that of a data set begins with `datasets/`) and its path there."""

    repo: str
    path: str


def git_oid(blob: Blob) -> str:
    """Git's hash of a file's bytes (of the pointer, for LFS)."""
    data = blob.data if blob.data is not None else f"version lfs\noid sha256:{blob.lfs}\n".encode()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
