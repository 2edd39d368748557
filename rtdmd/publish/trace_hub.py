"""The lineage of a repository on the Hub, through the records in it; only these and small files are downloaded."""

from __future__ import annotations

import re
import tempfile
from functools import partial
from pathlib import Path

from huggingface_hub import HfApi

from rtdmd.common.errors import UserError
from rtdmd.common.files import sha256_file
from rtdmd.publish.records import MAX_BYTES, PROVENANCE, UPLOAD, Provenance, Record, Upload, read_record_file
from rtdmd.publish.trace import Traced, damage, published_from, trace_record
from rtdmd.publish.upload_http import Patience, hub_session, repository_files

_TARGET = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")


def trace_hub(target: str, api: HfApi | None = None, patience: Patience | None = None) -> Traced:
    """The lineage of ``owner/name`` or ``owner/name@revision`` (default: main).

    Large files are compared by the SHA-256 that the Hub tells, small ones by their bytes. UserError when there is no
    such repository, or no record in it.
    """
    match = _TARGET.fullmatch(target)
    if match is None:
        raise UserError(f"{target}: no such file or folder, and no Hub repository's name (owner/name[@revision])")
    api = api or HfApi()
    patience = patience or Patience()
    repo = match["repo"]
    revision = match["revision"] or "main"
    title = f"{target} on the Hub"

    def download(path: str, folder: str) -> Path:
        fetch = partial(api.hf_hub_download, repo, path, revision=revision, cache_dir=folder)
        return Path(patience.call(f"download of {path}", fetch))

    def record(kind: type[Record], path: str, folder: str) -> Record:
        if there[path].size > MAX_BYTES:
            raise UserError(
                f"{title}, {path}: not a record of this package (more than {MAX_BYTES} bytes); name another revision"
            )
        return read_record_file(kind, download(path, folder), f"{title}, {path}")

    with hub_session(write=False), tempfile.TemporaryDirectory() as folder:
        there = patience.call(repo, partial(repository_files, api, repo, revision))
        if PROVENANCE not in there:
            raise UserError(f"{title}: no {PROVENANCE} in it; it was not published by `rtdmd upload`")
        provenance = record(Provenance, PROVENANCE, folder)
        upload = record(Upload, UPLOAD, folder) if UPLOAD in there else Upload()
        here = {}
        for path in upload.files.keys() & there.keys():
            large = there[path].lfs
            here[path] = sha256_file(download(path, folder)) if large is None else large.sha256
    notes = published_from(upload) if UPLOAD in there else []
    return trace_record(provenance, title, damage(upload.files, here), notes)
