"""What the loopback Hub stores (repositories, commits, files), and the faults that it may be told to have."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from urllib.parse import unquote


@dataclass
class Fault:
    """Something that goes wrong at a route, ``times`` times, from the ``skip``-th request on.

    kind: a status ("503"; "429" with ``retry_after`` seconds), or
    "cut"          the request is dropped
    "cut after"    it is carried out, and the answer lost
    "cut half"     half of the body is read, or sent, and the connection ends
    "wrong bytes"  one byte of an upload or download changes on the way
    "rots"         one byte of a stored object changes after it was accepted
    "html"         a proxy's page (502) instead of an answer
    "echo"         a 500 that repeats the request's token
    "moved"        someone else commits to the branch just before
    "hang"         nothing happens until the server's ``released`` is set; it sets ``hanging``
    """

    route: str
    kind: str
    times: int = 1
    skip: int = 0
    retry_after: int | None = None
    happened: int = 0


@dataclass(frozen=True)
class Blob:
    """A file in a commit: its bytes, or the LFS object it points to."""

    data: bytes | None = None
    lfs: str | None = None  # SHA-256


@dataclass
class Repo:
    """A repository: commits by hash (message, parent, files), branches and tags."""

    private: bool
    commits: dict[str, tuple[str, str | None, dict[str, Blob]]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, message: str, parent: str | None, files: dict[str, Blob]) -> str:
        text = json.dumps([message, parent, sorted((path, git_oid(blob)) for path, blob in files.items())])
        oid = hashlib.sha1(f"{len(self.commits)} {text}".encode()).hexdigest()
        self.commits[oid] = (message, parent, files)
        return oid

    def resolve(self, revision: str) -> str | None:
        """The commit of a branch, tag or commit hash."""
        revision = unquote(revision)
        return (
            self.branches.get(revision) or self.tags.get(revision) or (revision if revision in self.commits else None)
        )

    def history(self, revision: str) -> list[str]:
        """Messages of a branch's commits, last first."""
        found, oid = [], self.resolve(revision)
        while oid is not None:
            message, oid, _ = self.commits[oid]
            found.append(message)
        return found


def git_oid(blob: Blob) -> str:
    """Git's hash of a file's bytes (of the pointer, for LFS)."""
    data = blob.data if blob.data is not None else f"version lfs\noid sha256:{blob.lfs}\n".encode()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def flip(data: bytes) -> bytes:
    """The bytes with the last one changed."""
    return data[:-1] + bytes([data[-1] ^ 1])
