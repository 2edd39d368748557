"""The rehearsal's Hub on loopback (rtdmd/rehearse/hub.py) with what an upload needs (branches, tags, commits), and with
faults on order.

    with HubServer(token="hf_...") as hub:
        hub.inject(Fault("commit", "cut after"), Fault("lfs put", "503", times=2))
        HfApi(endpoint=hub.url, token=...).create_commit(...)
        assert hub.pending() == []

Routes follow what client 2.4 sends. Large files come by either of its roads: LFS (HF_HUB_DISABLE_XET=1), or Xet, where
hf_xet cuts them into chunks and sends these in "xorbs" to a store of its own; they are put together again by hash.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, unquote

from rtdmd.rehearse.hub import API, REPO, SIGNATURE, Answer, Handler, Hub, Refusal, Routes, json_answer, refused
from rtdmd.rehearse.hub import route as reading
from tests.publish.hub_store import Blob, Fault, Repo, flip, git_oid

REGULAR_LIMIT = 20_000  # bytes; larger files and all safetensors go by LFS
XET_TOKEN = "of-the-chunk-store"


class HubServer(Hub):
    """The server, its storage and its log. ``tokens``: token -> may it write. Large files lie at another origin
    (``store``), as the Hub's do, where the token has no business."""

    repos: dict[str, Repo]

    def __init__(self, token: str) -> None:
        super().__init__(token, UploadHandler)
        self.xorbs: dict[str, list[bytes]] = {}  # Xet: path -> its chunks
        self.faults: list[Fault] = []
        self.requests: Counter[str] = Counter()  # by route
        self.received: Counter[str] = Counter()  # LFS objects stored, by SHA-256
        self.hanging = threading.Event()
        self.released = threading.Event()

    def inject(self, *faults: Fault) -> None:
        self.faults += faults

    def injected(self) -> int:
        """How many faults happened."""
        return sum(fault.happened for fault in self.faults)

    def pending(self) -> list[Fault]:
        """Faults that were ordered and did not happen (all times)."""
        return [fault for fault in self.faults if fault.happened < fault.times]

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        """What a download of the revision would give."""
        found = self.repos[repo]
        _, _, files = found.commits[found.resolve(revision) or ""]
        return {path: self.bytes_of(blob) for path, blob in files.items()}

    def assemble(self, oid: str) -> bytes | None:
        """The bytes of an object whose chunks came by Xet: the run of chunks that has its SHA-256."""
        for chunks in self.xorbs.values():
            for start in range(len(chunks)):
                digest = hashlib.sha256()
                for end in range(start, len(chunks)):
                    digest.update(chunks[end])
                    if digest.hexdigest() == oid:
                        return b"".join(chunks[start : end + 1])
        return None

    def fault_at(self, route: str) -> Fault | None:
        """The next fault ordered for a route, counted as happened."""
        with self.lock:
            self.requests[route] += 1
            for fault in self.faults:
                if fault.route == route and fault.happened < fault.times:
                    if fault.skip:
                        fault.skip -= 1
                        return None
                    fault.happened += 1
                    return fault
        return None


route = Routes(reading)


class UploadHandler(Handler):
    """One request: let a fault happen or answer."""

    hub: HubServer
    routes = route

    def do_POST(self) -> None:
        self.do_GET()

    do_PUT = do_DELETE = do_POST

    def reply(self, name: str, function: Callable[..., Answer], match: re.Match[str]) -> None:
        fault = self.hub.fault_at(name)
        if fault is not None:
            self._faulty(fault, function, match)
        else:
            super().reply(name, function, match)

    def _send_half(self, answer: Answer) -> None:
        self.send((answer[0], {"Content-Length": str(len(answer[2]))} | answer[1], answer[2][: len(answer[2]) // 2]))
        self._cut()

    def _cut(self) -> None:
        self.close_connection = True
        self.wfile.flush()

    def _faulty(self, fault: Fault, function: Callable[..., Answer], match: re.Match[str]) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        if fault.kind == "hang":
            self.hub.hanging.set()
            self.hub.released.wait(30)
        if fault.kind in ("cut", "hang"):
            return self._cut()
        if fault.kind == "cut half" and size:
            self.rfile.read(size // 2)
            return self._cut()
        body = self.rfile.read(size)
        if fault.kind == "cut after":
            self.carry_out(function, match, body)
            return self._cut()
        if fault.kind == "moved":
            repo = self.hub.repos[match["repo"]]
            branch = unquote(match["revision"])
            _, _, files = repo.commits[repo.branches[branch]]
            files = files | {"NOTES.md": Blob(b"by hand\n")}
            repo.branches[branch] = repo.commit("someone else", repo.branches[branch], files)
        if fault.kind in ("cut half", "wrong bytes", "moved"):
            if fault.kind == "wrong bytes" and body:
                body = flip(body)
            answer = self.carry_out(function, match, body)
            if fault.kind == "wrong bytes" and answer[2]:
                answer = (answer[0], answer[1], flip(answer[2]))
            return self._send_half(answer) if fault.kind == "cut half" else self.send(answer)
        if fault.kind == "rots":
            answer = self.carry_out(function, match, body)
            self.hub.objects[match["oid"]] = flip(body)
            return self.send(answer)
        if fault.kind == "html":
            return self.send((502, {"Content-Type": "text/html"}, b"<html>bad gateway</html>"))
        if fault.kind == "echo":
            return self.send(refused(Refusal(500, f"cannot do this for {self.headers.get('Authorization')}")))
        answer = refused(Refusal(int(fault.kind), "ordered by the test"))
        extra = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
        return self.send((answer[0], answer[1] | extra, answer[2]))

    # who asks, and for what

    def repository(self, repo: str, write: bool = False) -> Repo:
        """Every request needs the token here, one that changes something a token that may write."""
        self._allowed(write)
        found = super().repository(repo)
        assert isinstance(found, Repo)
        return found

    def _allowed(self, write: bool) -> None:
        if self.token not in self.hub.tokens:
            raise Refusal(401, "Invalid credentials in Authorization header")
        if write and not self.hub.tokens[self.token]:
            raise Refusal(403, "the token is read-only")

    # routes

    @route("create", "POST", "/api/repos/create")
    def create(self, body: bytes) -> Answer:
        self._allowed(write=True)
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        address = f"{self.hub.url}/{name}"
        if name in self.hub.repos:
            return json_answer({"error": "You already created this model repo", "url": address}, 409)
        repo = self.hub.repos[name] = Repo(private=asked.get("visibility") == "private")
        repo.branches["main"] = repo.commit("initial commit", None, {".gitattributes": Blob(b"*.safetensors lfs\n")})
        return json_answer({"url": address, "name": name})

    @route("card", "POST", "/api/validate-yaml")
    def card(self, body: bytes) -> Answer:
        content = json.loads(body)["content"]
        errors = [] if content.startswith("---\n") else [{"message": "no metadata"}]
        return json_answer({"errors": errors, "warnings": []}, 400 if errors else 200)

    @route("refs", "GET", f"{API}/refs")
    def refs(self, _: bytes, repo: str) -> Answer:
        found = self.repository(repo)

        def listed(kind: str, names: dict[str, str]) -> list[dict[str, str]]:
            return [{"name": n, "ref": f"refs/{kind}/{n}", "targetCommit": oid} for n, oid in names.items()]

        return json_answer(
            {"branches": listed("heads", found.branches), "converts": [], "tags": listed("tags", found.tags)}
        )

    @route("branch", "POST", f"{API}/branch/(?P<name>[^/]+)")
    def branch(self, body: bytes, repo: str, name: str) -> Answer:
        found = self.repository(repo, write=True)
        if unquote(name) in found.branches:
            raise Refusal(409, "Reference already exists")
        oid, _ = self.files_at(repo, json.loads(body).get("startingPoint", "main"))
        found.branches[unquote(name)] = oid
        return json_answer({})

    @route("end branch", "DELETE", f"{API}/branch/(?P<name>[^/]+)")
    def end_branch(self, _: bytes, repo: str, name: str) -> Answer:
        if self.repository(repo, write=True).branches.pop(unquote(name), None) is None:
            raise Refusal(404, "Reference not found", "RevisionNotFound")
        return json_answer({})

    @route("tag", "POST", f"{API}/tag/(?P<revision>[^/]+)")
    def tag(self, body: bytes, repo: str, revision: str) -> Answer:
        found, name = self.repository(repo, write=True), json.loads(body)["tag"]
        if name in found.tags:
            raise Refusal(409, "Tag reference exists already")
        found.tags[name] = self.files_at(repo, revision)[0]
        return json_answer({})

    @route("preupload", "POST", f"{API}/preupload/(?P<revision>[^/]+)")
    def preupload(self, body: bytes, repo: str, revision: str) -> Answer:
        self.repository(repo, write=True)
        _, there = self.files_at(repo, revision)
        files = []
        for file in json.loads(body)["files"]:
            path, blob = file["path"], there.get(file["path"])
            large = file["size"] > REGULAR_LIMIT or path.endswith(".safetensors")
            oid = None if blob is None else blob.lfs or git_oid(blob)
            files.append({"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid})
        return json_answer({"files": files})

    @route("lfs batch", "POST", f"/{REPO}.git/info/lfs/objects/batch")
    def lfs_batch(self, body: bytes, repo: str) -> Answer:
        self.repository(repo, write=True)
        objects = []
        for wanted in json.loads(body)["objects"]:
            oid, found = wanted["oid"], {"oid": wanted["oid"], "size": wanted["size"]}
            if oid not in self.hub.objects:
                put = {"href": f"{self.hub.store}/lfs/{oid}?{SIGNATURE}"}
                found["actions"] = {"upload": put, "verify": {"href": f"{self.hub.url}/api/lfs/verify/{repo}"}}
            objects.append(found)
        return json_answer({"transfer": "basic", "objects": objects})

    @route("lfs put", "PUT", "/lfs/(?P<oid>[0-9a-f]{64})")
    def lfs_put(self, body: bytes, oid: str) -> Answer:
        self.signed()
        if hashlib.sha256(body).hexdigest() != oid:
            raise Refusal(400, "BadDigest")
        self.hub.objects[oid] = body
        self.hub.received[oid] += 1
        return 200, {"ETag": f'"{hashlib.md5(body).hexdigest()}"'}, b""

    @route("lfs verify", "POST", f"/api/lfs/verify/{REPO}")
    def lfs_verify(self, body: bytes, repo: str) -> Answer:
        self.repository(repo, write=True)
        asked = json.loads(body)
        data = self.hub.objects.get(asked["oid"])
        if data is None or len(data) != asked["size"]:
            self.hub.objects.pop(asked["oid"], None)
            raise Refusal(400, "the object is not what was announced")
        return json_answer({})

    @route("paths", "POST", f"{API}/paths-info/(?P<revision>[^/]+)")
    def paths(self, body: bytes, repo: str, revision: str) -> Answer:
        _, files = self.files_at(repo, revision)
        wanted = parse_qs(body.decode())["paths"]
        return json_answer([self.entry(path, files[path]) for path in wanted if path in files])

    @route("xet token", "GET", f"{API}/xet-write-token/(?P<revision>[^/]+)")
    def xet_token(self, _: bytes, repo: str, revision: str) -> Answer:
        self.repository(repo, write=True)
        expires = int(time.time()) + 3600
        return json_answer({"casUrl": self.hub.store, "exp": expires, "accessToken": XET_TOKEN})

    @route("xet chunks", "GET", r"/v1/chunks/.+")
    @route("xet grant", "POST", r"/v1/xorb-grants/.+")
    @route("xet frames", "POST", r"/v2/shards")
    def xet_absent(self, _: bytes) -> Answer:
        """No chunk is known before, and of what the store may offer it has the plainest."""
        self._xet_signed()
        raise Refusal(404, "not here")

    @route("xet xorb", "POST", r"/v1/xorbs/.+")
    def xet_xorb(self, body: bytes) -> Answer:
        self._xet_signed()
        chunks, start = [], 0
        while start + 8 < len(body):  # a header of 8 bytes with the length in bytes 1 to 3; 0 in byte 4: as it is
            size = int.from_bytes(body[start + 1 : start + 4], "little")
            if body[start + 4] != 0:
                raise Refusal(400, "this store takes only chunks that are not compressed")
            chunks.append(body[start + 8 : start + 8 + size])
            start += 8 + size
        self.hub.xorbs[self.path] = chunks
        return json_answer({"was_inserted": True})

    @route("xet shard", "POST", r"/v1/shards")
    def xet_shard(self, _: bytes) -> Answer:
        self._xet_signed()
        return json_answer({"result": 1})

    @route("xet telemetry", "POST", r"/v1/telemetry")
    def xet_telemetry(self, _: bytes) -> Answer:
        return json_answer({})

    def _xet_signed(self) -> None:
        if self.headers.get("Authorization") != f"Bearer {XET_TOKEN}":
            raise Refusal(401, "not the token of the chunk store")

    @route("commit", "POST", f"{API}/commit/(?P<revision>[^/]+)")
    def commit(self, body: bytes, repo: str, revision: str) -> Answer:
        found, branch = self.repository(repo, write=True), unquote(revision)
        lines = [json.loads(line) for line in body.splitlines()]
        header = next(line["value"] for line in lines if line["key"] == "header")
        parent = found.branches.get(branch)
        if parent is None:
            raise Refusal(404, "Invalid rev id", "RevisionNotFound")
        if header.get("parentCommit", parent) != parent:
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        files = dict(found.commits[parent][2])
        for line in lines:
            self._apply(files, line["key"], line["value"])
        found.branches[branch] = oid = found.commit(header["summary"], parent, files)
        return json_answer({"commitOid": oid, "commitUrl": f"{self.hub.url}/{repo}/commit/{oid}"})

    def _apply(self, files: dict[str, Blob], key: str, value: dict[str, Any]) -> None:
        if key == "file":
            files[value["path"]] = Blob(base64.b64decode(value["content"]))
        elif key == "lfsFile":
            by_xet = None if value["oid"] in self.hub.objects else self.hub.assemble(value["oid"])
            if by_xet is not None:
                self.hub.objects[value["oid"]] = by_xet
                self.hub.received[value["oid"]] += 1
            if value["oid"] not in self.hub.objects:
                raise Refusal(400, f"LFS pointer to an object that is not there: {value['path']}")
            files[value["path"]] = Blob(lfs=value["oid"])
        elif key == "deletedFile" and files.pop(value["path"], None) is None:
            raise Refusal(404, "A file with this name doesn't exist", "EntryNotFound")
