"""The way of a publication to the Hub: a branch, a second look at every byte, then `main` and a tag.

    repository   made if need be, private unless publish.private is false
    branch       upload-<tag>: one commit with all files
    verify       every file downloaded again, its SHA-256 compared with what was sent
    main         one commit with the same files (large ones are there already)
    tag          dvc-<hash of the lineage in dvc.lock>; then the branch goes

Every step looks first at what is there. So each may be repeated after a fault, a run may be broken off anywhere and
started again, and a second run sends nothing; `main` never holds a file that was not verified.
"""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.hf_api import GitRefs, RepoFile

from rtdmd.common.errors import RtdmdError, UserError
from rtdmd.common.files import read_json, sha256_file
from rtdmd.publish.trace import PUBLISHED_FROM
from rtdmd.publish.upload_http import Patience, hub_session
from rtdmd.publish.upload_plan import Publication

MAIN = "main"


@dataclass
class Uploader:
    """Brings one publication to its repository."""

    publication: Publication
    api: HfApi = field(default_factory=lambda: HfApi(token=True))  # True: the usual token, asked for when needed
    patience: Patience = field(default_factory=Patience)

    def run(self, review: bool = False) -> str:
        """Publish and say in a line what is where. ``review``: stop at the verified branch.

        RtdmdError or UserError when it could not be finished; then no tag was set, and `main` is as before or holds
        verified files. Neither the message nor its cause holds the token.
        """
        with hub_session():
            self._check_no_token()
            self._ensure_repository()
            if self._is_published():
                self._remove_branch()
                return f"{self._where()} is there already; nothing was sent"
            self._start_branch()
            head = self._push(self.publication.branch)
            self._verify(head)
            if review:
                return f"{self._where(self.publication.branch)} is verified; the same command without --review goes on"
            commit = self._push(MAIN)
            self._check_arrived(commit)
            self._tag(commit)
            self._remove_branch()
            return f"published {self._where()}"

    def _where(self, revision: str | None = None) -> str:
        repo = self.publication.repo_id
        return f"{self.api.endpoint}/{repo}/tree/{revision or self.publication.tag}"

    def _check_no_token(self) -> None:
        token = (get_token() or "").encode()
        for path, content in self.publication.files.items():
            data = (
                content
                if isinstance(content, bytes)
                else b""
                if path.endswith(".safetensors")
                else content.read_bytes()
            )
            if token and token in data:
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

    def _refs(self) -> GitRefs:
        return self.patience.call("branches and tags", lambda: self.api.list_repo_refs(self.publication.repo_id))

    def _is_published(self) -> bool:
        """Is the tag there, and does it hold this folder? UserError when it holds another."""
        publication = self.publication
        if publication.tag not in {tag.name for tag in self._refs().tags}:
            return False
        there = self._files(publication.tag)
        with tempfile.TemporaryDirectory() as folder:
            known = PUBLISHED_FROM in there
            record = read_json(self._download(PUBLISHED_FROM, publication.tag, folder)) if known else {}
        files: dict[str, str] = record.get("files", {})
        whole = all(path in there and _large_is(there[path], digest) for path, digest in files.items())
        if record.get("folder") != publication.record["folder"] or not whole:
            raise UserError(
                f"{publication.repo_id}: the tag {publication.tag} holds other files than results/publish; tags are not"
                " moved: delete it on the Hub if it is wrong"
            )
        return True

    def _start_branch(self) -> None:
        def start() -> None:
            branches = {branch.name for branch in self.api.list_repo_refs(self.publication.repo_id).branches}
            if self.publication.branch not in branches:
                self.api.create_branch(self.publication.repo_id, branch=self.publication.branch, revision=MAIN)

        self.patience.call(f"branch {self.publication.branch}", start)

    def _push(self, revision: str) -> str:
        """Bring the branch's files to what they should be, in one commit if any differ; its head."""

        def push() -> str:
            head = self.api.model_info(self.publication.repo_id, revision=revision).sha
            operations = self._operations(self._tree(str(head)), str(head))
            if not operations:
                return str(head)
            commit = self.api.create_commit(
                self.publication.repo_id,
                operations,
                commit_message=f"Publish {self.publication.tag}",
                commit_description=f"Made from commit {self.publication.record['git_commit']}",
                revision=revision,
                parent_commit=head,
            )
            return str(commit.oid)

        return self.patience.call(f"files to {revision}", push)

    def _operations(self, there: dict[str, RepoFile], head: str) -> list[CommitOperationAdd | CommitOperationDelete]:
        """What brings the files that are there to what they should be. Files that an earlier upload brought and this
        one does not have go; files that came otherwise stay."""
        files = self.publication.files
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationAdd(path, content)
            for path, content in files.items()
            if path not in there or not self._same(there[path], path)
        ]
        if PUBLISHED_FROM in there:
            with tempfile.TemporaryDirectory() as folder:
                earlier = read_json(self._fetch(PUBLISHED_FROM, head, folder)).get("files", {})
            operations += [
                CommitOperationDelete(path) for path in sorted(earlier) if path in there and path not in files
            ]
        return operations

    def _same(self, remote: RepoFile, path: str) -> bool:
        """Is the file there what it should be? Large files tell their SHA-256, small ones Git's own hash."""
        if remote.lfs is not None:
            return remote.lfs.sha256 == self.publication.sha256[path]
        content = self.publication.files[path]
        data = content if isinstance(content, bytes) else content.read_bytes()
        return remote.blob_id == hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()

    def _tree(self, revision: str) -> dict[str, RepoFile]:
        entries = self.api.list_repo_tree(self.publication.repo_id, recursive=True, revision=revision)
        return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}

    def _files(self, revision: str) -> dict[str, RepoFile]:
        return self.patience.call("list of files", lambda: self._tree(revision))

    def _fetch(self, path: str, revision: str, folder: str) -> Path:
        return Path(self.api.hf_hub_download(self.publication.repo_id, path, revision=revision, cache_dir=folder))

    def _download(self, path: str, revision: str, folder: str) -> Path:
        return self.patience.call(f"download of {path}", lambda: self._fetch(path, revision, folder))

    def _verify(self, head: str) -> None:
        """Download every file and compare it with what was sent; bytes that were damaged on the way are fetched again.

        RtdmdError when the Hub itself holds other bytes.
        """
        for path, wanted in sorted(self.publication.sha256.items()):
            got = ""
            for _ in range(self.patience.attempts):
                with tempfile.TemporaryDirectory() as folder:
                    got = sha256_file(self._download(path, head, folder))
                if got == wanted:
                    break
                self.patience.say(f"{path}: SHA-256 {got[:12]} came back, {wanted[:12]} was sent; fetching it again")
            if got != wanted:
                raise RtdmdError(
                    f"{path}: the Hub gives back SHA-256 {got}, {wanted} was sent; nothing reached {MAIN}, and no tag"
                    f" was set (branch {self.publication.branch})"
                )

    def _check_arrived(self, commit: str) -> None:
        """RtdmdError when the list of files at ``commit`` does not tell the hashes of what was verified."""
        there = self._files(commit)
        wrong = [path for path in self.publication.files if path not in there or not self._same(there[path], path)]
        if wrong:
            raise RtdmdError(f"{MAIN} at {commit} holds other bytes of {', '.join(wrong)}; no tag was set")

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
