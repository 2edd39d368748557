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
from huggingface_hub.hf_api import RepoFile

from rtdmd.common.errors import RtdmdError, UserError
from rtdmd.common.files import read_json, sha256_file
from rtdmd.publish.records import UPLOAD
from rtdmd.publish.upload_http import Patience, hub_session, repository_files
from rtdmd.publish.upload_plan import Publication, header_bytes, shadows

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
        publication = self.publication
        repo = publication.repo_id
        branch = publication.branch
        tag = publication.tag
        make_branch = partial(self.api.create_branch, repo, branch=branch, revision=MAIN)
        remove_branch = partial(self.api.delete_branch, repo, branch=branch)
        with hub_session():
            self._check_no_token()
            self._ensure_repository()
            if self._is_published():
                self._set_ref(branch, f"end of branch {branch}", there=False, change=remove_branch)
                return self._bring_back(review, gate)
            self._set_ref(branch, f"branch {branch}", there=True, change=make_branch)
            head = self._commit(branch, self._filling)
            self._verify(head, publication.sha256)
            self._put_through(head, gate)
            if review:
                return f"{self._where(branch)} is verified; the same command without --review goes on"
            commit = self._take_over(head, set(publication.files))
            message = f"Lineage in dvc.lock: {publication.record['dvc_lock']['sha256']}"
            set_tag = partial(self.api.create_tag, repo, tag=tag, tag_message=message, revision=commit)
            self._set_ref(tag, f"tag {tag}", there=True, change=set_tag)
            self._set_ref(branch, f"end of branch {branch}", there=False, change=remove_branch)
            return f"published {self._where(tag)}"

    def _where(self, revision: str) -> str:
        return f"{self.api.endpoint}/{self.publication.repo_id}/tree/{revision}"

    def _check_no_token(self) -> None:
        token = (get_token() or "").encode()
        for path, content in self.publication.files.items():
            if token and token in (content if isinstance(content, bytes) else header_bytes(content)):
                raise UserError(f"{path} holds the token of the Hub; remove it, and make a new token")

    def _ensure_repository(self) -> None:
        repo = self.publication.repo_id
        wanted = self.publication.private

        def ensure() -> bool | None:
            try:
                return self.api.model_info(repo).private
            except RepositoryNotFoundError:
                self.api.create_repo(repo, private=wanted, exist_ok=True)
                return self.api.model_info(repo).private

        private = self.patience.call("repository", ensure)
        if private not in (None, wanted):
            kinds = ("public", "private")
            raise UserError(
                f"{repo} is {kinds[not wanted]}, publish.private is {str(wanted).lower()}; make the repository"
                f" {kinds[wanted]} on the Hub, or set publish.private: {str(not wanted).lower()}"
            )

    def _set_ref(self, name: str, what: str, there: bool, change: Callable[[], object]) -> None:
        """Let a branch or tag be ``there``, or not, by ``change``, unless that is so already."""

        def look_and_change() -> None:
            refs = self.api.list_repo_refs(self.publication.repo_id)
            if (name in {ref.name for ref in (*refs.branches, *refs.tags)}) != there:
                change()

        self.patience.call(what, look_and_change)

    def _is_published(self) -> bool:
        """Is the tag there, and does it hold this folder? UserError when it holds another."""
        publication = self.publication
        refs = self.patience.call("branches and tags", lambda: self.api.list_repo_refs(publication.repo_id))
        if publication.tag not in {tag.name for tag in refs.tags}:
            return False
        there = self._files(publication.tag)
        record = self._record_at(publication.tag, there)
        files = record.get("files", {})
        whole = all(path in there and _sha256(there[path]) in (None, digest) for path, digest in files.items())
        if record.get("folder") != publication.record["folder"] or not whole:
            raise UserError(
                f"{publication.repo_id}: the tag {publication.tag} holds other files than results/publish; tags are not"
                " moved: delete it on the Hub if it is wrong"
            )
        return True

    def _record_at(self, revision: str, there: Files) -> dict[str, Any]:
        """`upload.json` of a revision; empty where it has none."""
        if UPLOAD not in there:
            return {}
        with tempfile.TemporaryDirectory() as folder:
            return read_json(self._download(UPLOAD, revision, folder))

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
        files = {*record["files"], UPLOAD}
        main = self._files(MAIN)
        if not _changes(main, self._wanted(tag, files)):
            self._put_through(MAIN, gate)
            return f"{self._where(tag)} is there already; nothing was sent"
        now = self._record_at(MAIN, main).get("tag", "files that no upload of ours brought")
        if review:
            return (
                f"{self._where(tag)} is there already, but {MAIN} holds {now}; the same command without --review brings"
                f" {MAIN} back to it"
            )
        self._verify(tag, record["files"])
        self._put_through(tag, gate)
        self._take_over(tag, files)
        return f"{self._where(tag)} is there already, but {MAIN} held {now}; {MAIN} holds {tag} again"

    def _filling(self, head: str, there: Files) -> list[Operation]:
        """What brings the branch's files to what they should be."""
        publication = self.publication
        sent = [
            CommitOperationAdd(path, content)
            for path, content in publication.files.items()
            if path not in there or not self._is_sent(there[path])
        ]
        self.api.preupload_lfs_files(publication.repo_id, sent, revision=publication.branch, free_memory=False)
        for file in sent:
            if file.upload_info.sha256.hex() != publication.sha256[file.path_in_repo]:
                raise UserError(f"{file.path_in_repo} changed while it was sent; run `rtdmd upload` again")
        return [*sent, *self._deletions(head, there, set(publication.files))]

    def _is_sent(self, remote: RepoFile) -> bool:
        """Is the file there what it should be? Large files tell their SHA-256, small ones Git's own hash."""
        if remote.lfs is not None:
            return remote.lfs.sha256 == self.publication.sha256[remote.path]
        content = self.publication.files[remote.path]
        return remote.blob_id == git_hash(content if isinstance(content, bytes) else content.read_bytes())

    def _take_over(self, source: str, files: set[str]) -> str:
        """Bring `main` to the verified ``files`` of the commit or tag ``source``, in one commit if any differ; its
        hash. RtdmdError where the list of files does not tell the same hashes afterwards."""
        wanted = self._wanted(source, files)

        def operations(head: str, there: Files) -> list[Operation]:
            taken = [
                self._taken(file, source) for path, file in wanted.items() if _hash(there.get(path)) != _hash(file)
            ]
            return [*taken, *self._deletions(head, there, files)]

        commit = self._commit(MAIN, operations)
        wrong = _changes(self._files(commit), wanted)
        if wrong:
            raise RtdmdError(f"{MAIN} at {commit} holds other bytes of {', '.join(wrong)}; no tag was set")
        return commit

    def _wanted(self, revision: str, files: set[str]) -> dict[str, RepoFile]:
        there = self._files(revision)
        return {path: there[path] for path in sorted(files)}

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
        publication = self.publication

        def commit() -> str:
            head = str(self.api.model_info(publication.repo_id, revision=revision).sha)
            wanted = operations(head, repository_files(self.api, publication.repo_id, head))
            if not wanted:
                return head
            made = self.api.create_commit(
                publication.repo_id,
                wanted,
                commit_message=f"Publish {publication.tag}",
                commit_description=f"Made from commit {publication.record['git_commit']}",
                revision=revision,
                parent_commit=head,
            )
            return str(made.oid)

        return self.patience.call(f"files to {revision}", commit)

    def _deletions(self, head: str, there: Files, files: set[str]) -> list[CommitOperationDelete]:
        """What goes: files that an earlier upload brought and this one does not have, and files that would be loaded in
        place of these. Other files that came otherwise stay."""
        earlier: set[str] = set()
        if UPLOAD in there:
            with tempfile.TemporaryDirectory() as folder:
                earlier = set(read_json(self._fetch(UPLOAD, head, folder)).get("files", {}))
        foreign = shadows(there, files | earlier)
        if foreign:
            self.patience.say(f"removing what would be loaded in place of these weights: {', '.join(foreign)}")
        return [CommitOperationDelete(path) for path in sorted((earlier & there.keys()) - files) + foreign]

    def _files(self, revision: str) -> dict[str, RepoFile]:
        look = partial(repository_files, self.api, self.publication.repo_id, revision)
        return self.patience.call("list of files", look)

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


def _changes(there: Files, wanted: Files) -> list[str]:
    """Paths at which a revision differs from what it should hold, or holds what would be loaded in its place."""
    differing = [path for path, file in wanted.items() if _hash(there.get(path)) != _hash(file)]
    return differing + shadows(there, wanted.keys())


def _sha256(file: RepoFile) -> str | None:
    """What a large file tells of itself; None for a small one."""
    return file.lfs.sha256 if file.lfs is not None else None


def _hash(file: RepoFile | None) -> str | None:
    """What tells a file's bytes from others: SHA-256 of a large one, Git's hash of a small one."""
    return None if file is None else _sha256(file) or file.blob_id


def git_hash(data: bytes) -> str:
    """Git's hash of a file's bytes."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
