"""A small Hub on loopback that serves stand-ins to the unmodified client of huggingface_hub: read only.

    with Hub("hf_anything") as hub:
        hub.add("owner/name", folder, revision)
        snapshot_download("owner/name", revision=revision)  # with HF_ENDPOINT: hub.url
    hub.fetched  # how often each file was sent

Routes follow what client 2.4 asks. Weights lie at another origin (``store``) behind signed addresses, as the Hub's do.
The tests' Hub, which takes uploads and has faults, is built on this one.
"""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, quote, unquote, urlsplit

from rtdmd.common.files import sha256_bytes
from rtdmd.rehearse.hub_store import DATASETS, LARGE, Blob, Fetch, Repo, git_oid

SIGNATURE = "X-Amz-Signature=5e1f3a77c0ffee"
REPO = rf"(?P<repo>(?:{DATASETS})?[\w.-]+/[\w.-]+)"
API = rf"/api/(?:models/|(?={DATASETS})){REPO}"
Answer = tuple[int, dict[str, str], bytes]
"""Status, headers, body."""
Method = Callable[..., Answer]
"""Of a handler: from the body and the named parts of the path."""


class Refusal(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class Routes:
    """Which method of a handler answers which request; as a decorator of these methods it adds one."""

    def __init__(self, known: Routes | None = None) -> None:
        self._entries: list[tuple[str, str, re.Pattern[str], str]] = list(known._entries) if known else []

    def __call__(
        self, name: str, methods: str, pattern: str
    ) -> Callable[[Callable[..., Answer]], Callable[..., Answer]]:
        """Register a method under ``name`` for the HTTP ``methods`` (words) of a path."""

        def register(function: Method) -> Method:
            self._entries += [(name, method, re.compile(pattern), function.__name__) for method in methods.split()]
            return function

        return register

    def find(self, method: str, path: str) -> tuple[str, str, re.Match[str]] | None:
        """Name of the route, name of the handler's method, and the match of the path."""
        for name, its_method, pattern, function in self._entries:
            match = pattern.fullmatch(path) if its_method == method else None
            if match is not None:
                return name, function, match
        return None


route = Routes()


class Handler(BaseHTTPRequestHandler):
    """One request: find the route and answer."""

    hub: Hub
    routes = route
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are two sends, and the second would wait 40 ms for the client's word

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        found = self.routes.find(self.command, path)
        if found is None:
            self.send(refused(Refusal(404, f"no route for {self.command} {path}")))
        else:
            name, function, match = found
            self.reply(name, getattr(self, function), match)

    do_HEAD = do_GET

    def log_message(self, format: str, *arguments: Any) -> None:
        """Quiet."""

    def reply(self, name: str, function: Method, match: re.Match[str]) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send(self.carry_out(function, match, body))

    def carry_out(self, function: Method, match: re.Match[str], body: bytes) -> Answer:
        """The answer of a route's method, a refusal too."""
        try:
            with self.hub.lock:
                return function(body, **match.groupdict())
        except Refusal as refusal:
            return refused(refusal)

    def send(self, answer: Answer) -> None:
        """Send an answer; of one to HEAD the headers alone."""
        status, headers, body = answer
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    # who asks, and for what

    @property
    def token(self) -> str:
        """The token of who asks, empty without one."""
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ")

    def repository(self, repo: str) -> Repo:
        """Refusal where there is none of this name."""
        if repo not in self.hub.repos:
            raise Refusal(404, "Repository not found", "RepoNotFound")
        return self.hub.repos[repo]

    def readable(self, repo: str) -> None:
        """Refusal where who asks may not read the files of a gated repository."""
        found = self.repository(repo)
        if found.gated and self.token not in self.hub.tokens:
            raise Refusal(401, f"Access to {repo} is restricted. Please log in.", "GatedRepo")
        if found.gated and not found.access:
            raise Refusal(403, f"Access to {repo} is restricted and you are not in the authorized list.", "GatedRepo")

    def files_at(self, repo: str, revision: str) -> tuple[str, dict[str, Blob]]:
        found = self.repository(repo)
        oid = found.resolve(revision)
        if oid is None:
            raise Refusal(404, "Invalid rev id", "RevisionNotFound")
        return oid, found.commits[oid][2]

    def signed(self) -> None:
        """Refusal of a request to the store that has no signature, or brings the token along."""
        if SIGNATURE not in self.path:
            raise Refusal(403, "SignatureDoesNotMatch")
        if "Authorization" in self.headers:
            raise Refusal(403, "the token has no business at the object store")

    # routes

    @route("info", "GET", f"{API}(/revision/(?P<revision>[^/]+))?")
    def info(self, _: bytes, repo: str, revision: str | None) -> Answer:
        """What a repository is, which anyone may ask."""
        oid, files = self.files_at(repo, revision or "main")
        found = self.hub.repos[repo]
        siblings = [{"rfilename": path} for path in sorted(files)]
        about = {"id": repo.removeprefix(DATASETS), "sha": oid, "private": found.private, "siblings": siblings}
        return json_answer(about | {"gated": "manual" if found.gated else False})

    @route("tree", "GET", f"{API}/tree/(?P<revision>[^/]+)")
    def tree(self, _: bytes, repo: str, revision: str) -> Answer:
        self.readable(repo)
        return json_answer([self.entry(path, blob) for path, blob in self.files_at(repo, revision)[1].items()])

    def entry(self, path: str, blob: Blob) -> dict[str, Any]:
        size = len(self.hub.bytes_of(blob))
        lfs = {} if blob.lfs is None else {"lfs": {"oid": blob.lfs, "size": size, "pointerSize": 130}}
        return {"type": "file", "path": path, "size": size, "oid": git_oid(blob), **lfs}

    @route("resolve", "HEAD GET", f"/{REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
    def resolve(self, _: bytes, repo: str, revision: str, path: str) -> Answer:
        """A file, or where in the store it lies."""
        self.readable(repo)
        oid, files = self.files_at(repo, revision)
        name = unquote(path)
        blob = files.get(name)
        if blob is None:
            raise Refusal(404, "Entry not found", "EntryNotFound")
        data = self.hub.bytes_of(blob)
        headers = {"X-Repo-Commit": oid}
        if blob.lfs is None:
            if self.command == "GET":
                self.hub.fetched[Fetch(repo, name)] += 1
            return 200, headers | {"ETag": f'"{git_oid(blob)}"'}, data
        linked = {"X-Linked-Etag": f'"{blob.lfs}"', "X-Linked-Size": str(len(data))}
        address = f"{self.hub.store}/cdn/{blob.lfs}?{SIGNATURE}&repo={quote(repo)}&path={quote(name)}"
        return 302, headers | linked | {"Location": address}, b""

    @route("download", "GET", "/cdn/(?P<oid>[0-9a-f]{64})")
    def download(self, _: bytes, oid: str) -> Answer:
        """An object of the store, or its end."""
        self.signed()
        asked = parse_qs(urlsplit(self.path).query)
        self.hub.fetched[Fetch(asked["repo"][0], asked["path"][0])] += 1
        data = self.hub.objects[oid]
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if span is None:
            return 200, {"ETag": f'"{oid}"'}, data
        start = int(span[1])
        end = int(span[2]) if span[2] else len(data) - 1
        return 206, {"ETag": f'"{oid}"', "Content-Range": f"bytes {start}-{end}/{len(data)}"}, data[start : end + 1]


class Hub:
    """The server, its repositories and what it sent. token: who is logged in."""

    def __init__(self, token: str, handler: type[Handler] = Handler) -> None:
        self.tokens = {token: True}
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}  # the store: SHA-256 -> bytes
        self.fetched: Counter[Fetch] = Counter()
        self.lock = threading.RLock()
        bound = type("BoundHandler", (handler,), {"hub": self})
        self._servers = [ThreadingHTTPServer(("127.0.0.1", 0), bound) for _ in range(2)]
        self.url, self.store = (f"http://127.0.0.1:{server.server_address[1]}" for server in self._servers)
        self._threads = [
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
            for server in self._servers
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for server, thread in zip(self._servers, self._threads, strict=True):
            server.shutdown()
            server.server_close()
            thread.join()

    def add(self, repo: str, folder: Path, revision: str, *, gated: bool = False) -> Repo:
        """Serve the files of ``folder`` as the commit ``revision`` of a repository, the newest of its branch main; the
        name of a data set begins with `datasets/`."""
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        files = {path.relative_to(folder).as_posix(): self._stored(path) for path in paths}
        found = self.repos.setdefault(repo, Repo())
        found.gated = gated
        found.commits[revision] = ("stand-in", None, files)
        found.branches["main"] = revision
        return found

    def _stored(self, path: Path) -> Blob:
        data = path.read_bytes()
        if path.suffix not in LARGE:
            return Blob(data)
        oid = sha256_bytes(data)
        self.objects[oid] = data
        return Blob(lfs=oid)

    def bytes_of(self, blob: Blob) -> bytes:
        return blob.data if blob.data is not None else self.objects[blob.lfs or ""]


def refused(refusal: Refusal) -> Answer:
    status, headers, body = json_answer({"error": str(refusal)}, refusal.status)
    headers["X-Error-Message"] = str(refusal)
    if refusal.code is not None:
        headers["X-Error-Code"] = refusal.code
    return status, headers, body


def json_answer(value: Any, status: int = 200) -> Answer:
    return status, {"Content-Type": "application/json"}, json.dumps(value).encode()
