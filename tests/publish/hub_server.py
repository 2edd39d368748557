"""A small Hub on loopback, for the unmodified client of huggingface_hub: repositories with branches, tags and commits,
LFS storage behind signed addresses, and faults on order.

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
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.publish.hub_store import Blob, Fault, Repo, flip, git_oid

REGULAR_LIMIT = 20_000  # bytes; larger files and all safetensors go by LFS
SIGNATURE = "X-Amz-Signature=5e1f3a77c0ffee"
XET_TOKEN = "of-the-chunk-store"


class HubServer:
    """The server, its storage and its log. ``tokens``: token -> may it write. Large files lie at another origin
    (``store``), as the Hub's do, where the token has no business."""

    def __init__(self, token: str) -> None:
        self.tokens = {token: True}
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}  # LFS: SHA-256 -> bytes
        self.xorbs: dict[str, list[bytes]] = {}  # Xet: path -> its chunks
        self.faults: list[Fault] = []
        self.requests: Counter[str] = Counter()  # by route
        self.received: Counter[str] = Counter()  # LFS objects stored, by SHA-256
        self.lock = threading.RLock()
        self.hanging, self.released = threading.Event(), threading.Event()
        handler = type("BoundHandler", (Handler,), {"hub": self})
        self._servers = [ThreadingHTTPServer(("127.0.0.1", 0), handler) for _ in range(2)]
        self.url, self.store = (f"http://127.0.0.1:{server.server_address[1]}" for server in self._servers)
        self._threads = [
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
            for server in self._servers
        ]

    def __enter__(self) -> HubServer:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for server, thread in zip(self._servers, self._threads, strict=True):
            server.shutdown()
            server.server_close()
            thread.join()

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

    def bytes_of(self, blob: Blob) -> bytes:
        return blob.data if blob.data is not None else self.objects[blob.lfs or ""]

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


class Refusal(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code = status, code


Answer = tuple[int, dict[str, str], bytes]
ROUTES: list[tuple[str, str, re.Pattern[str], str]] = []


def route(name: str, methods: str, pattern: str) -> Callable[[Callable[..., Answer]], Callable[..., Answer]]:
    """Register a method of Handler for a path."""

    def register(function: Callable[..., Answer]) -> Callable[..., Answer]:
        for method in methods.split():
            ROUTES.append((name, method, re.compile(pattern), function.__name__))
        return function

    return register


def json_answer(value: Any, status: int = 200) -> Answer:
    return status, {"Content-Type": "application/json"}, json.dumps(value).encode()


REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"


class Handler(BaseHTTPRequestHandler):
    """One request: find the route, let a fault happen or answer."""

    hub: HubServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def _serve(self) -> None:
        path = urlsplit(self.path).path
        for name, method, pattern, function in ROUTES:
            match = pattern.fullmatch(path) if method == self.command else None
            if match is not None:
                fault = self.hub.fault_at(name)
                return self._faulty(fault, getattr(self, function), match) if fault else self._answer(function, match)
        return self._send(self._refusal(Refusal(404, f"no route for {self.command} {path}")))

    def _answer(self, function: str, match: re.Match[str]) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self._send(self._carry_out(getattr(self, function), match, body))

    def _carry_out(self, function: Callable[..., Answer], match: re.Match[str], body: bytes) -> Answer:
        try:
            with self.hub.lock:
                return function(body, **match.groupdict())
        except Refusal as refusal:
            return self._refusal(refusal)

    def _refusal(self, refusal: Refusal) -> Answer:
        status, headers, body = json_answer({"error": str(refusal)}, refusal.status)
        return (
            status,
            headers | {"X-Error-Message": str(refusal)} | ({"X-Error-Code": refusal.code} if refusal.code else {}),
            body,
        )

    def _send(self, answer: Answer, half: bool = False) -> None:
        status, headers, body = answer
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if half else body)
        if half:
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
            self._carry_out(function, match, body)
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
            answer = self._carry_out(function, match, body)
            if fault.kind == "wrong bytes" and answer[2]:
                answer = (answer[0], answer[1], flip(answer[2]))
            return self._send(answer, half=fault.kind == "cut half")
        if fault.kind == "rots":
            answer = self._carry_out(function, match, body)
            self.hub.objects[match["oid"]] = flip(body)
            return self._send(answer)
        if fault.kind == "html":
            return self._send((502, {"Content-Type": "text/html"}, b"<html>bad gateway</html>"))
        if fault.kind == "echo":
            return self._send(self._refusal(Refusal(500, f"cannot do this for {self.headers.get('Authorization')}")))
        answer = self._refusal(Refusal(int(fault.kind), "ordered by the test"))
        extra = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
        return self._send((answer[0], answer[1] | extra, answer[2]))

    # who asks, and for what

    def _allowed(self, write: bool = False) -> None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token not in self.hub.tokens:
            raise Refusal(401, "Invalid credentials in Authorization header")
        if write and not self.hub.tokens[token]:
            raise Refusal(403, "the token is read-only")

    def _signed(self) -> None:
        if SIGNATURE not in self.path:
            raise Refusal(403, "SignatureDoesNotMatch")
        if "Authorization" in self.headers:
            raise Refusal(403, "the token has no business at the object store")

    def _repo(self, repo: str, write: bool = False) -> Repo:
        self._allowed(write)
        if repo not in self.hub.repos:
            raise Refusal(404, "Repository not found", "RepoNotFound")
        return self.hub.repos[repo]

    def _files_at(self, repo: str, revision: str) -> tuple[str, dict[str, Blob]]:
        found = self._repo(repo)
        oid = found.resolve(revision)
        if oid is None:
            raise Refusal(404, "Invalid rev id", "RevisionNotFound")
        return oid, found.commits[oid][2]

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

    @route("info", "GET", f"/api/models/{REPO}(/revision/(?P<revision>[^/]+))?")
    def info(self, _: bytes, repo: str, revision: str | None) -> Answer:
        oid, files = self._files_at(repo, revision or "main")
        siblings = [{"rfilename": path} for path in sorted(files)]
        return json_answer({"id": repo, "sha": oid, "private": self.hub.repos[repo].private, "siblings": siblings})

    @route("refs", "GET", f"/api/models/{REPO}/refs")
    def refs(self, _: bytes, repo: str) -> Answer:
        found = self._repo(repo)

        def listed(kind: str, names: dict[str, str]) -> list[dict[str, str]]:
            return [{"name": n, "ref": f"refs/{kind}/{n}", "targetCommit": oid} for n, oid in names.items()]

        return json_answer(
            {"branches": listed("heads", found.branches), "converts": [], "tags": listed("tags", found.tags)}
        )

    @route("branch", "POST", f"/api/models/{REPO}/branch/(?P<name>[^/]+)")
    def branch(self, body: bytes, repo: str, name: str) -> Answer:
        found = self._repo(repo, write=True)
        if unquote(name) in found.branches:
            raise Refusal(409, "Reference already exists")
        oid, _ = self._files_at(repo, json.loads(body).get("startingPoint", "main"))
        found.branches[unquote(name)] = oid
        return json_answer({})

    @route("end branch", "DELETE", f"/api/models/{REPO}/branch/(?P<name>[^/]+)")
    def end_branch(self, _: bytes, repo: str, name: str) -> Answer:
        if self._repo(repo, write=True).branches.pop(unquote(name), None) is None:
            raise Refusal(404, "Reference not found", "RevisionNotFound")
        return json_answer({})

    @route("tag", "POST", f"/api/models/{REPO}/tag/(?P<revision>[^/]+)")
    def tag(self, body: bytes, repo: str, revision: str) -> Answer:
        found, name = self._repo(repo, write=True), json.loads(body)["tag"]
        if name in found.tags:
            raise Refusal(409, "Tag reference exists already")
        found.tags[name] = self._files_at(repo, revision)[0]
        return json_answer({})

    @route("tree", "GET", f"/api/models/{REPO}/tree/(?P<revision>[^/]+)")
    def tree(self, _: bytes, repo: str, revision: str) -> Answer:
        return json_answer([self._entry(path, blob) for path, blob in self._files_at(repo, revision)[1].items()])

    def _entry(self, path: str, blob: Blob) -> dict[str, Any]:
        size = len(self.hub.bytes_of(blob))
        lfs = {} if blob.lfs is None else {"lfs": {"oid": blob.lfs, "size": size, "pointerSize": 130}}
        return {"type": "file", "path": path, "size": size, "oid": git_oid(blob), **lfs}

    @route("preupload", "POST", f"/api/models/{REPO}/preupload/(?P<revision>[^/]+)")
    def preupload(self, body: bytes, repo: str, revision: str) -> Answer:
        self._repo(repo, write=True)
        _, there = self._files_at(repo, revision)
        files = []
        for file in json.loads(body)["files"]:
            path, blob = file["path"], there.get(file["path"])
            large = file["size"] > REGULAR_LIMIT or path.endswith(".safetensors")
            oid = None if blob is None else blob.lfs or git_oid(blob)
            files.append({"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid})
        return json_answer({"files": files})

    @route("lfs batch", "POST", f"/{REPO}.git/info/lfs/objects/batch")
    def lfs_batch(self, body: bytes, repo: str) -> Answer:
        self._repo(repo, write=True)
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
        self._signed()
        if hashlib.sha256(body).hexdigest() != oid:
            raise Refusal(400, "BadDigest")
        self.hub.objects[oid] = body
        self.hub.received[oid] += 1
        return 200, {"ETag": f'"{hashlib.md5(body).hexdigest()}"'}, b""

    @route("lfs verify", "POST", f"/api/lfs/verify/{REPO}")
    def lfs_verify(self, body: bytes, repo: str) -> Answer:
        self._repo(repo, write=True)
        asked = json.loads(body)
        data = self.hub.objects.get(asked["oid"])
        if data is None or len(data) != asked["size"]:
            self.hub.objects.pop(asked["oid"], None)
            raise Refusal(400, "the object is not what was announced")
        return json_answer({})

    @route("paths", "POST", f"/api/models/{REPO}/paths-info/(?P<revision>[^/]+)")
    def paths(self, body: bytes, repo: str, revision: str) -> Answer:
        _, files = self._files_at(repo, revision)
        wanted = parse_qs(body.decode())["paths"]
        return json_answer([self._entry(path, files[path]) for path in wanted if path in files])

    @route("xet token", "GET", f"/api/models/{REPO}/xet-write-token/(?P<revision>[^/]+)")
    def xet_token(self, _: bytes, repo: str, revision: str) -> Answer:
        self._repo(repo, write=True)
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

    @route("commit", "POST", f"/api/models/{REPO}/commit/(?P<revision>[^/]+)")
    def commit(self, body: bytes, repo: str, revision: str) -> Answer:
        found, branch = self._repo(repo, write=True), unquote(revision)
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

    @route("resolve", "HEAD GET", f"/{REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
    def resolve(self, _: bytes, repo: str, revision: str, path: str) -> Answer:
        oid, files = self._files_at(repo, revision)
        blob = files.get(unquote(path))
        if blob is None:
            raise Refusal(404, "Entry not found", "EntryNotFound")
        data, headers = self.hub.bytes_of(blob), {"X-Repo-Commit": oid}
        if blob.lfs is None:
            return 200, headers | {"ETag": f'"{git_oid(blob)}"'}, data
        linked = {"X-Linked-Etag": f'"{blob.lfs}"', "X-Linked-Size": str(len(data))}
        return 302, headers | linked | {"Location": f"{self.hub.store}/cdn/{blob.lfs}?{SIGNATURE}"}, b""

    @route("download", "GET", "/cdn/(?P<oid>[0-9a-f]{64})")
    def download(self, _: bytes, oid: str) -> Answer:
        self._signed()
        data = self.hub.objects[oid]
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if asked is None:
            return 200, {"ETag": f'"{oid}"'}, data
        start = int(asked[1])
        span = f"bytes {start}-{len(data) - 1}/{len(data)}"
        return 206, {"ETag": f'"{oid}"', "Content-Range": span}, data[start:]
