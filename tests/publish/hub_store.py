"""The repositories of the tests' Hub, which take commits, and the faults that it may be told to have."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from rtdmd.rehearse.hub_store import Blob, git_oid
from rtdmd.rehearse.hub_store import Repo as Readable


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


class Repo(Readable):
    """A repository that takes commits."""

    def commit(self, message: str, parent: str | None, files: dict[str, Blob]) -> str:
        text = json.dumps([message, parent, sorted((path, git_oid(blob)) for path, blob in files.items())])
        oid = hashlib.sha1(f"{len(self.commits)} {text}".encode()).hexdigest()
        self.commits[oid] = (message, parent, files)
        return oid

    def history(self, revision: str) -> list[str]:
        """Messages of a branch's commits, last first."""
        found, oid = [], self.resolve(revision)
        while oid is not None:
            message, oid, _ = self.commits[oid]
            found.append(message)
        return found


def flip(data: bytes) -> bytes:
    """The bytes with the last one changed."""
    return data[:-1] + bytes([data[-1] ^ 1])
