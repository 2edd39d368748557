"""The lineage of a repository on the Hub, through the records in it; only these and small files are downloaded."""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.hf_api import RepoFile

from rtdmd.common.errors import UserError
from rtdmd.common.files import sha256_file
from rtdmd.publish.record_schema import MAX_BYTES, Provenance, Record, Upload, read_record_file
from rtdmd.publish.trace import PROVENANCE, PUBLISHED_FROM, Traced, damage, published_from, trace_record
from rtdmd.publish.upload_http import Patience, hub_session

_TARGET = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")


@dataclass(frozen=True)
class _Remote:
    """One revision of a repository."""

    api: HfApi
    repo: str
    revision: str
    patience: Patience

    def files(self) -> dict[str, RepoFile]:
        """Every file, by its path."""
        entries = self.patience.call(
            self.repo, lambda: list(self.api.list_repo_tree(self.repo, recursive=True, revision=self.revision))
        )
        return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}

    def download(self, path: str, folder: str) -> Path:
        """One file, into ``folder``."""
        fetched = self.patience.call(
            f"download of {path}",
            lambda: self.api.hf_hub_download(self.repo, path, revision=self.revision, cache_dir=folder),
        )
        return Path(fetched)


def trace_hub(target: str, api: HfApi | None = None, patience: Patience | None = None) -> Traced:
    """The lineage of ``owner/name`` or ``owner/name@revision`` (default: main).

    Large files are compared by the SHA-256 that the Hub tells, small ones by their bytes. UserError when there is no
    such repository, or no record in it.
    """
    match = _TARGET.fullmatch(target)
    if match is None:
        raise UserError(f"{target}: no such file or folder, and no Hub repository's name (owner/name[@revision])")
    remote = _Remote(api or HfApi(), match["repo"], match["revision"] or "main", patience or Patience())
    with hub_session(write=False):
        return _traced(remote, f"{target} on the Hub")


def _traced(remote: _Remote, title: str) -> Traced:
    there = remote.files()
    if PROVENANCE not in there:
        raise UserError(f"{title}: no {PROVENANCE} in it; it was not published by `rtdmd upload`")
    with tempfile.TemporaryDirectory() as folder:
        record = _record(remote, Provenance, there[PROVENANCE], folder, title)
        upload = Upload()
        if PUBLISHED_FROM in there:
            upload = _record(remote, Upload, there[PUBLISHED_FROM], folder, title)
        here = {path: _sha256(remote, there[path], folder) for path in upload.files if path in there}
    notes = published_from(upload) if PUBLISHED_FROM in there else []
    return trace_record(record, title, damage(upload.files, here), notes)


def _record(remote: _Remote, kind: type[Record], file: RepoFile, folder: str, title: str) -> Record:
    """A record of the repository; one that is too large is not downloaded."""
    if file.size > MAX_BYTES:
        raise UserError(
            f"{title}, {file.path}: not a record of this package (more than {MAX_BYTES} bytes); name another revision"
        )
    return read_record_file(kind, remote.download(file.path, folder), f"{title}, {file.path}")


def _sha256(remote: _Remote, file: RepoFile, folder: str) -> str:
    return file.lfs.sha256 if file.lfs is not None else sha256_file(remote.download(file.path, folder))
