"""Faults on the way to the Hub: each is recovered from, nothing is lost or doubled, and the token is never seen."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import HfApi

from rtdmd.common.errors import RtdmdError, UserError
from rtdmd.config import preset
from rtdmd.config.render import params_text
from rtdmd.publish.upload import Uploader
from rtdmd.publish.upload_http import HIDDEN, Patience, redact
from rtdmd.publish.upload_http import Fault as Found
from rtdmd.publish.upload_plan import Publication, make_publication
from tests.publish.hub_server import HubServer
from tests.publish.hub_store import Fault
from tests.publish.publication import REPO, TOKEN, copy_repository, usual_client, write
from tests.publish.test_upload import WRITES, contents, published_files

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the client's own

EVERYWHERE = (
    "info",
    "create",
    "refs",
    "branch",
    "end branch",
    "card",
    "tree",
    "preupload",
    "lfs batch",
    "lfs put",
    "lfs verify",
    "commit",
    "resolve",
    "download",
    "paths",
    "tag",
)
FAULTS = [
    *(Fault(route, kind) for route in EVERYWHERE for kind in ("cut", "cut after")),
    *(Fault(route, "503") for route in ("info", "resolve", "download")),  # everywhere else: in the storm
    *(Fault(route, "429", retry_after=7) for route in ("create", "preupload", "lfs put", "commit", "tag")),
    Fault("resolve", "429"),  # a HEAD: the client asks once more at once
    *(Fault(route, "echo") for route in ("create", "branch", "commit", "tag", "tree")),
    *(Fault(route, "html") for route in ("card", "commit", "lfs put", "resolve")),
    *(Fault(route, "cut half") for route in ("lfs put", "commit", "download", "preupload")),
    *(Fault(route, "wrong bytes") for route in ("lfs put", "download")),
    *(Fault("resolve", kind, skip=1) for kind in ("cut half", "wrong bytes")),  # the GET of a small file
    *(Fault("commit", kind, skip=1) for kind in ("cut", "cut after", "500", "moved")),  # the commit to main
    Fault("commit", "moved"),
    Fault("download", "cut half", times=4),
    Fault("commit", "409", times=3),
    Fault("lfs put", "504", times=5),
]


@pytest.fixture
def pauses() -> list[float]:
    """What was waited for: by the client itself and by us."""
    return []


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, pauses: list[float]) -> Iterator[HubServer]:
    usual_client(monkeypatch, pauses)
    with HubServer(TOKEN) as server:
        yield server


@pytest.fixture(autouse=True)
def nothing_tells_the_token(capfd: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Neither what is printed nor what is logged at any level."""
    caplog.set_level("DEBUG")
    yield
    said = "".join(capfd.readouterr()) + caplog.text
    assert TOKEN not in said
    assert TOKEN[3:] not in said


@pytest.fixture
def publication(run_repository: Path) -> Publication:
    return make_publication(run_repository, REPO, private=True)


def uploader(publication: Publication, hub: HubServer, pauses: list[float]) -> Uploader:
    return Uploader(publication, HfApi(endpoint=hub.url, token=True), Patience(sleep=pauses.append))


def assert_published_once(hub: HubServer, publication: Publication, by_others: int = 0) -> None:
    """Every byte is there, on main and behind the tag; each commit once; nothing is left over."""
    repo = hub.repos[REPO]
    files = published_files(hub)
    others = {"NOTES.md": b"by hand\n"} if by_others else {}
    assert files == {**contents(publication), **others}
    assert published_files(hub, publication.tag) == files
    history = repo.history("main")
    assert history.count(f"Publish {publication.tag}") == 1
    assert len(history) == 2 + by_others
    assert list(repo.branches) == ["main"]
    assert list(repo.tags) == [publication.tag]
    assert len(hub.objects) == 2


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.route} {fault.kind} {fault.skip}+{fault.times}")
def test_a_fault_is_recovered_from(fault: Fault, hub: HubServer, publication: Publication, pauses: list[float]) -> None:
    fault.happened = 0
    hub.inject(fault)
    uploader(publication, hub, pauses).run()
    assert hub.injected() == fault.times
    assert_published_once(
        hub, publication, by_others=fault.kind == "moved" and hub.repos[REPO].history("main").count("someone else")
    )
    if fault.retry_after is not None:
        assert max(pauses) >= fault.retry_after


def test_a_storm(hub: HubServer, publication: Publication, pauses: list[float]) -> None:
    """Every request fails twice before it succeeds."""
    storm = [Fault(route, kind) for route in EVERYWHERE for kind in ("503", "cut")]
    hub.inject(*storm)
    uploader(publication, hub, pauses).run()
    assert hub.injected() == len(storm) == 32
    assert_published_once(hub, publication)


@pytest.mark.parametrize("route", ["create", "branch", "lfs put", "commit", "resolve", "tag", "end branch"])
def test_when_patience_ends_a_second_run_goes_on(
    route: str, hub: HubServer, publication: Publication, pauses: list[float]
) -> None:
    hub.inject(Fault(route, "503", times=10_000))
    with pytest.raises(
        RtdmdError, match=r"the Hub answers 503 \(ordered by the test\), 6 times; the same command goes on from here"
    ):
        uploader(publication, hub, pauses).run()
    if route != "end branch":
        assert REPO not in hub.repos or not hub.repos[REPO].tags
    stored = dict(hub.received)
    hub.faults.clear()
    hub.requests.clear()
    uploader(publication, hub, pauses).run()
    assert_published_once(hub, publication)
    assert all(hub.received[oid] == times for oid, times in stored.items())  # what was there was not sent again
    if route == "tag":
        assert [name for name in WRITES if hub.requests[name]] == ["end branch", "tag"]


def test_damage_in_the_store_is_seen_before_main(hub: HubServer, publication: Publication, pauses: list[float]) -> None:
    hub.inject(Fault("lfs put", "rots"))
    with pytest.raises(
        RtdmdError, match=r"gives back SHA-256 [0-9a-f]{64}, [0-9a-f]{64} was sent; nothing reached main"
    ):
        uploader(publication, hub, pauses).run()
    assert published_files(hub) == {}
    assert hub.repos[REPO].tags == {}


@pytest.mark.parametrize(
    ("status", "route", "says"),
    [
        ("401", "info", "the token is missing, expired or wrong; log in with `hf auth login`, or set HF_TOKEN"),
        ("401", "commit", "the token is missing, expired or wrong; log in with `hf auth login`, or set HF_TOKEN"),
        ("401", "lfs batch", "the token is missing, expired or wrong"),
        ("403", "create", "the token may not do this"),
        ("403", "tag", "the token may not do this"),
    ],
)
def test_a_token_that_will_not_do_is_told_at_once(
    status: str, route: str, says: str, hub: HubServer, publication: Publication, pauses: list[float]
) -> None:
    hub.inject(Fault(route, status))
    with pytest.raises(UserError, match=says):
        uploader(publication, hub, pauses).run()
    assert pauses == []
    uploader(publication, hub, pauses).run()  # with a good one
    assert_published_once(hub, publication)


def test_an_expired_token(hub: HubServer, publication: Publication, pauses: list[float]) -> None:
    hub.tokens = {}
    with pytest.raises(UserError, match="the Hub answers 401"):
        uploader(publication, hub, pauses).run()
    assert hub.repos == {}
    hub.tokens = {TOKEN: False}
    with pytest.raises(UserError, match=r"the Hub answers 403 \(the token is read-only\)"):
        uploader(publication, hub, pauses).run()
    assert hub.repos == {}


def test_an_error_holds_no_token_however_it_came_about(
    hub: HubServer, publication: Publication, pauses: list[float]
) -> None:
    hub.inject(Fault("create", "echo", times=99))
    with pytest.raises(RtdmdError) as caught:
        uploader(publication, hub, pauses).run()
    error: BaseException | None = caught.value
    assert HIDDEN in str(error)
    while error is not None:
        assert TOKEN not in repr(error)
        error = error.__cause__ or error.__context__


def test_redact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "not-of-the-usual-form")
    assert redact("a not-of-the-usual-form b") == f"a {HIDDEN} b"
    assert redact(f"Authorization: Bearer {TOKEN}.") == f"Authorization: Bearer {HIDDEN}"
    assert redact(f"x{TOKEN}") == f"x{TOKEN}"  # no token: part of a longer word
    assert redact("https://x/y?X-Amz-Signature=abc&part=1") == f"https://x/y?X-Amz-Signature={HIDDEN}&part=1"
    assert redact("hf_hub_download of hf-internal/repo") == "hf_hub_download of hf-internal/repo"


def test_pauses_double_to_a_limit_and_follow_the_hub() -> None:
    slept: list[float] = []
    patience = Patience(attempts=5, first=2.0, longest=9.0, sleep=slept.append, say=lambda _: None)

    def fail() -> None:
        raise httpx2.ConnectError("no route")

    with pytest.raises(RtdmdError, match=r"x: the connection broke \(ConnectError\), 5 times"):
        patience.call("x", fail)
    assert slept == [2.0, 4.0, 8.0, 9.0]
    assert not Found.of(ValueError("LFS batch API returned errors")).passing
    assert Found.of(OSError("Consistency check failed: file should be of size 3")).passing
    assert not Found.of(PermissionError(13, "no")).passing


def test_without_a_network_only_we_wait(publication: Publication, hub: HubServer, pauses: list[float]) -> None:
    """Half a minute, not the client's five waits inside each of our six."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        hub.url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
    with pytest.raises(RtdmdError, match=r"the connection broke \(ConnectError\), 6 times; the same command goes on"):
        uploader(publication, hub, pauses).run()
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0]


def command(root: Path, hub: HubServer, home: Path) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": TOKEN,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_DEBUG": "1",
        "NO_PROXY": "127.0.0.1",
    }
    line = [sys.executable, "-m", "rtdmd", "upload", "--yes", "--allow-dirty"]
    return subprocess.Popen(
        line, cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_the_command_is_killed_and_goes_on(run_repository: Path, tmp_path: Path, hub: HubServer) -> None:
    """The real process with every log on: killed while it commits to main, then run again."""
    root = copy_repository(run_repository, tmp_path / "root")
    write(root, "params.yaml", params_text(preset("smoke", {"publish": {"repo_id": REPO}}), "a test"))
    hub.inject(Fault("create", "echo"), Fault("commit", "hang", skip=1))
    first = command(root, hub, tmp_path / "home")
    assert hub.hanging.wait(60)
    first.send_signal(signal.SIGKILL)
    killed = first.communicate()[0]
    hub.released.set()
    assert published_files(hub) == {}
    stored = dict(hub.received)
    second = command(root, hub, tmp_path / "home")
    said = second.communicate()[0]
    assert second.returncode == 0, said
    assert said.splitlines()[-1].startswith(f"published {hub.url}/{REPO}/tree/dvc-")
    assert "create" not in said and HIDDEN in killed
    assert dict(hub.received) == stored
    publication = make_publication(root, REPO, private=True, allow_dirty=True)
    assert_published_once(hub, publication)
    assert TOKEN not in killed + said
    for path in [*root.rglob("*"), *(tmp_path / "home").rglob("*")]:
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path
