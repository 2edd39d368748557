"""The way of a publication to the Hub: a branch, a second look at every byte, then `main` and a tag.

    repository   made if need be, private unless publish.private is false
    branch       upload-<tag>: one commit with all files, without those that would be loaded in their place
    verify       every file downloaded again, its SHA-256 compared with what was sent
    main         one commit that takes the verified files over from the branch: no file of this machine is read again
    tag          dvc-<hash of the lineage in dvc.lock>; then the branch goes

Every step looks first at what is there. So each may be repeated after a fault, a run may be broken off anywhere and
started again, and a second run sends nothing; `main` never holds a file that was not verified. When the tag is there
and `main` has moved on, `main` is brought back to it.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.hf_api import GitRefs, RepoFile

from rtdmd.common.errors import RtdmdError, UserError
from rtdmd.common.files import read_json, sha256_file
from rtdmd.publish.trace import PUBLISHED_FROM
from rtdmd.publish.upload_http import Patience, hub_session
from rtdmd.publish.upload_plan import Publication, header_bytes
from rtdmd.publish.upload_shadows import shadows

Operation = CommitOperationAdd | CommitOperationCopy | CommitOperationDelete
Files = Mapping[str, RepoFile]
Gate = Callable[[Path], None]
MAIN = "main"


@dataclass
class Uploader:
    """Brings one publication to its repository."""

    publication: Publication
    api: HfApi = field(default_factory=lambda: HfApi(token=True))  # True: the usual token, asked for when needed
    patience: Patience = field(default_factory=Patience)

    def run(self, review: bool = False, gate: Gate | None = None) -> str:
        """Publish and say in a line what is where. ``review``: stop at the verified branch. ``gate``: what is told the
        folder of a whole revision, downloaded, before `main` gets it; its errors end the upload.

        RtdmdError or UserError when it could not be finished; then no tag was set, and `main` is as before or holds
        verified files. Neither the message nor its cause holds the token.
        """
        with hub_session():
            self._check_no_token()
            self._ensure_repository()
            if self._is_published():
                self._remove_branch()
                return self._bring_back(review, gate)
            self._start_branch()
            head = self._fill_branch()
            self._verify(head, self.publication.sha256)
            self._put_through(head, gate)
            if review:
                return f"{self._where(self.publication.branch)} is verified; the same command without --review goes on"
            self._tag(self._take_over(head, set(self.publication.files)))
            self._remove_branch()
            return f"published {self._where()}"

    def _where(self, revision: str | None = None) -> str:
        repo = self.publication.repo_id
        return f"{self.api.endpoint}/{repo}/tree/{revision or self.publication.tag}"

    def _check_no_token(self) -> None:
        token = (get_token() or "").encode()
        for path, content in self.publication.files.items():
            if token and token in (content if isinstance(content, bytes) else header_bytes(content)):
                raise UserError(f"{path} holds the token of the Hub; remove it, and make a new token")

    def _ensure_repository(self) -> None:
        publication = self.publication

        def ensure() -> bool | None:
            try:
                return self.api.model_info(publication.repo_id).private
            except RepositoryNotFoundError:
                self.api.create_repo(publication.repo_id, private=publication.private, exist_ok=True)
                return self.api.model_info(publication.repo_id).private

        private = self.patience.call("repository", ensure)
        if publication.private and private is False:
            raise UserError(
                f"{publication.repo_id} is public, publish.private is true; make the repository private on the Hub, or"
                " set publish.private: false"
            )
        if not publication.private and private:
            raise UserError(
                f"{publication.repo_id} is private, publish.private is false; make the repository public on the Hub, or"
                " set publish.private: true"
            )

    def _refs(self) -> GitRefs:
        return self.patience.call("branches and tags", lambda: self.api.list_repo_refs(self.publication.repo_id))

    def _is_published(self) -> bool:
        """Is the tag there, and does it hold this folder? UserError when it holds another."""
        publication = self.publication
        if publication.tag not in {tag.name for tag in self._refs().tags}:
            return False
        there = self._files(publication.tag)
        record = self._record_at(publication.tag, there)
        files = record.get("files", {})
        whole = all(path in there and _large_is(there[path], digest) for path, digest in files.items())
        if record.get("folder") != publication.record["folder"] or not whole:
            raise UserError(
                f"{publication.repo_id}: the tag {publication.tag} holds other files than results/publish; tags are not"
                " moved: delete it on the Hub if it is wrong"
            )
        return True

    def _record_at(self, revision: str, there: Files) -> dict[str, Any]:
        """`upload.json` of a revision; empty where it has none."""
        if PUBLISHED_FROM not in there:
            return {}
        with tempfile.TemporaryDirectory() as folder:
            return dict(read_json(self._download(PUBLISHED_FROM, revision, folder)))

    def _put_through(self, revision: str, gate: Gate | None) -> None:
        """Download every file of a revision, ours or not, and give the folder to the gate."""
        if gate is None:
            return
        with tempfile.TemporaryDirectory() as name:
            for path in self._files(revision):
                fetch = partial(self.api.hf_hub_download, self.publication.repo_id, path, local_dir=name)
                self.patience.call(f"download of {path}", partial(fetch, revision=revision))
            gate(Path(name))

    def _bring_back(self, review: bool, gate: Gate | None) -> str:
        """What is published already: see that `main` holds it, and bring `main` back to it where it does not."""
        tag = self.publication.tag
        record = self._record_at(tag, self._files(tag))
        files = {*record["files"], PUBLISHED_FROM}
        main = self._files(MAIN)
        if not self._changes(main, self._wanted(tag, files)):
            self._put_through(MAIN, gate)
            return f"{self._where()} is there already; nothing was sent"
        now = self._record_at(MAIN, main).get("tag", "files that no upload of ours brought")
        if review:
            return (
                f"{self._where()} is there already, but {MAIN} holds {now}; the same command without --review brings"
                f" {MAIN} back to it"
            )
        self._verify(tag, record["files"])
        self._put_through(tag, gate)
        self._take_over(tag, files)
        return f"{self._where()} is there already, but {MAIN} held {now}; {MAIN} holds {tag} again"

    def _start_branch(self) -> None:
        def start() -> None:
            branches = {branch.name for branch in self.api.list_repo_refs(self.publication.repo_id).branches}
            if self.publication.branch not in branches:
                self.api.create_branch(self.publication.repo_id, branch=self.publication.branch, revision=MAIN)

        self.patience.call(f"branch {self.publication.branch}", start)

    def _fill_branch(self) -> str:
        """Bring the branch's files to what they should be, in one commit if any differ; its head."""
        publication = self.publication

        def operations(head: str, there: Files) -> list[Operation]:
            sent = [
                CommitOperationAdd(path, content)
                for path, content in publication.files.items()
                if path not in there or not self._same(there[path], path)
            ]
            self.api.preupload_lfs_files(publication.repo_id, sent, revision=publication.branch, free_memory=False)
            for file in sent:
                if file.upload_info.sha256.hex() != publication.sha256[file.path_in_repo]:
                    raise UserError(f"{file.path_in_repo} changed while it was sent; run `rtdmd upload` again")
            return [*sent, *self._deletions(head, there, set(publication.files))]

        return self._commit(publication.branch, operations)

    def _take_over(self, source: str, files: set[str]) -> str:
        """Bring `main` to the verified ``files`` of the commit or tag ``source``, in one commit if any differ; its
        hash. RtdmdError where the list of files does not tell the same hashes afterwards."""
        wanted = self._wanted(source, files)

        def operations(head: str, there: Files) -> list[Operation]:
            taken = [self._taken(file, source) for path, file in wanted.items() if not _equal(there.get(path), file)]
            return [*taken, *self._deletions(head, there, files)]

        commit = self._commit(MAIN, operations)
        wrong = self._changes(self._files(commit), wanted)
        if wrong:
            raise RtdmdError(f"{MAIN} at {commit} holds other bytes of {', '.join(wrong)}; no tag was set")
        return commit

    def _wanted(self, revision: str, files: set[str]) -> dict[str, RepoFile]:
        there = self._files(revision)
        return {path: there[path] for path in sorted(files)}

    def _changes(self, there: Files, wanted: Files) -> list[str]:
        """Paths at which a revision differs from what it should hold, or holds what would be loaded in its place."""
        return [
            *(path for path, file in wanted.items() if not _equal(there.get(path), file)),
            *shadows(there, wanted.keys()),
        ]

    def _taken(self, file: RepoFile, source: str) -> Operation:
        """A file of ``source`` for `main`: a large one by its hash, a small one by bytes that have the hash of Git."""
        if file.lfs is not None:
            return CommitOperationCopy(file.path, file.path, src_revision=source)
        content = self.publication.files.get(file.path)
        if not isinstance(content, bytes) or git_hash(content) != file.blob_id:
            with tempfile.TemporaryDirectory() as folder:
                content = self._fetch(file.path, source, folder).read_bytes()
            if git_hash(content) != file.blob_id:
                raise OSError(f"Consistency check failed: other bytes of {file.path} came back")
        return CommitOperationAdd(file.path, content)

    def _commit(self, revision: str, operations: Callable[[str, Files], list[Operation]]) -> str:
        """One commit on a branch with what ``operations`` asks for, given its head and the files there, if that is
        anything; the branch's head afterwards."""

        def commit() -> str:
            head = str(self.api.model_info(self.publication.repo_id, revision=revision).sha)
            wanted = operations(head, self._tree(head))
            if not wanted:
                return head
            made = self.api.create_commit(
                self.publication.repo_id,
                wanted,
                commit_message=f"Publish {self.publication.tag}",
                commit_description=f"Made from commit {self.publication.record['git_commit']}",
                revision=revision,
                parent_commit=head,
            )
            return str(made.oid)

        return self.patience.call(f"files to {revision}", commit)

    def _deletions(self, head: str, there: Files, files: set[str]) -> list[CommitOperationDelete]:
        """What goes: files that an earlier upload brought and this one does not have, and files that would be loaded in
        place of these. Other files that came otherwise stay."""
        earlier: set[str] = set()
        if PUBLISHED_FROM in there:
            with tempfile.TemporaryDirectory() as folder:
                earlier = set(read_json(self._fetch(PUBLISHED_FROM, head, folder)).get("files", {}))
        foreign = shadows(there, files | earlier)
        if foreign:
            self.patience.say(f"removing what would be loaded in place of these weights: {', '.join(foreign)}")
        return [CommitOperationDelete(path) for path in sorted((earlier & there.keys()) - files) + foreign]

    def _same(self, remote: RepoFile, path: str) -> bool:
        """Is the file there what it should be? Large files tell their SHA-256, small ones Git's own hash."""
        if remote.lfs is not None:
            return remote.lfs.sha256 == self.publication.sha256[path]
        content = self.publication.files[path]
        return remote.blob_id == git_hash(content if isinstance(content, bytes) else content.read_bytes())

    def _tree(self, revision: str) -> dict[str, RepoFile]:
        entries = self.api.list_repo_tree(self.publication.repo_id, recursive=True, revision=revision)
        return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}

    def _files(self, revision: str) -> dict[str, RepoFile]:
        return self.patience.call("list of files", lambda: self._tree(revision))

    def _fetch(self, path: str, revision: str, folder: str) -> Path:
        return Path(self.api.hf_hub_download(self.publication.repo_id, path, revision=revision, cache_dir=folder))

    def _download(self, path: str, revision: str, folder: str) -> Path:
        return self.patience.call(f"download of {path}", lambda: self._fetch(path, revision, folder))

    def _verify(self, revision: str, sha256: Mapping[str, str]) -> None:
        """Download every file and compare it with what was sent; bytes that were damaged on the way are fetched again.

        RtdmdError when the Hub itself holds other bytes.
        """
        for path, wanted in sorted(sha256.items()):
            got = ""
            for _ in range(self.patience.attempts):
                with tempfile.TemporaryDirectory() as folder:
                    got = sha256_file(self._download(path, revision, folder))
                if got == wanted:
                    break
                self.patience.say(f"{path}: SHA-256 {got[:12]} came back, {wanted[:12]} was sent; fetching it again")
            if got != wanted:
                raise RtdmdError(
                    f"{path}: the Hub gives back SHA-256 {got}, {wanted} was sent; nothing reached {MAIN}, and no tag"
                    f" was set (branch {self.publication.branch})"
                )

    def _tag(self, commit: str) -> None:
        publication = self.publication

        def tag() -> None:
            tags = {one.name for one in self.api.list_repo_refs(publication.repo_id).tags}
            if publication.tag not in tags:
                message = f"Lineage in dvc.lock: {publication.record['dvc_lock']['sha256']}"
                self.api.create_tag(publication.repo_id, tag=publication.tag, tag_message=message, revision=commit)

        self.patience.call(f"tag {publication.tag}", tag)

    def _remove_branch(self) -> None:
        def remove() -> None:
            branches = {branch.name for branch in self.api.list_repo_refs(self.publication.repo_id).branches}
            if self.publication.branch in branches:
                self.api.delete_branch(self.publication.repo_id, branch=self.publication.branch)

        self.patience.call(f"end of branch {self.publication.branch}", remove)


def _large_is(remote: RepoFile, digest: str) -> bool:
    """False when a large file tells another SHA-256 (a small one tells none)."""
    return remote.lfs is None or remote.lfs.sha256 == digest


def _equal(one: RepoFile | None, other: RepoFile) -> bool:
    """Whether two entries of lists of files tell the same bytes."""
    if one is None or one.lfs is None or other.lfs is None:
        return one is not None and one.lfs is other.lfs and one.blob_id == other.blob_id
    return bool(one.lfs.sha256 == other.lfs.sha256)


def git_hash(data: bytes) -> str:
    """Git's hash of a file's bytes."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
