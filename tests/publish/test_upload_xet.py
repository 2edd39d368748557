"""Large files over Xet, the client's default road, by the real hf_xet against a chunk store on loopback: what arrives,
what is refused, and how its errors are told."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi
from huggingface_hub.utils._xet import abort_xet_session

from rtdmd.common.errors import UserError
from rtdmd.publish.upload import Uploader
from rtdmd.publish.upload_http import Fault as Found
from rtdmd.publish.upload_http import Patience
from rtdmd.publish.upload_plan import Publication, make_publication
from tests.publish.hub_server import HubServer
from tests.publish.hub_store import Fault
from tests.publish.publication import REPO, TOKEN, copy_repository, usual_client, write
from tests.publish.test_upload import contents, published_files

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the client's own


@pytest.fixture
def pauses() -> list[float]:
    return []


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, pauses: list[float], tmp_path: Path) -> Iterator[HubServer]:
    usual_client(monkeypatch, pauses, xet=True)
    monkeypatch.setenv("HF_XET_CACHE", str(tmp_path / "xet"))
    monkeypatch.setenv("HF_XET_XORB_COMPRESSION_POLICY", "none")  # the loopback store knows no compression
    monkeypatch.setenv("HF_XET_CLIENT_RETRY_BASE_DELAY", "10ms")
    with HubServer(TOKEN) as server:
        yield server
    abort_xet_session()


@pytest.fixture
def publication(run_repository: Path) -> Publication:
    return make_publication(run_repository, REPO, private=True)


def uploader(publication: Publication, hub: HubServer, pauses: list[float]) -> Uploader:
    return Uploader(publication, HfApi(endpoint=hub.url, token=True), Patience(sleep=pauses.append))


def test_everything_arrives_by_xet(hub: HubServer, publication: Publication, pauses: list[float]) -> None:
    uploader(publication, hub, pauses).run()
    assert published_files(hub) == published_files(hub, publication.tag) == contents(publication)
    assert hub.requests["xet xorb"] >= 1
    assert not hub.requests["lfs put"]
    assert sorted(hub.received.values()) == [1, 1]
    assert list(hub.repos[REPO].branches) == ["main"]


@pytest.mark.parametrize("route", ["xet token", "xet grant", "xet xorb", "xet shard"])
@pytest.mark.parametrize(("status", "says"), [("401", "expired or wrong; log in with"), ("403", "may not do this")])
def test_a_token_that_will_not_do_is_told_at_once(
    route: str, status: str, says: str, hub: HubServer, publication: Publication, pauses: list[float]
) -> None:
    hub.inject(Fault(route, status, times=99))
    with pytest.raises(
        UserError, match=f"files to upload-dvc-.*: the Hub's storage answers {status}: the token.*{says}"
    ):
        uploader(publication, hub, pauses).run()
    assert pauses == []
    assert published_files(hub) == {}
    hub.faults.clear()
    uploader(publication, hub, pauses).run()
    assert published_files(hub) == contents(publication)


@pytest.mark.parametrize(("route", "kind"), [("xet token", "cut"), ("xet grant", "409"), ("xet xorb", "cut after")])
def test_what_passes_is_waited_for(
    route: str, kind: str, hub: HubServer, publication: Publication, pauses: list[float]
) -> None:
    hub.inject(Fault(route, kind))
    uploader(publication, hub, pauses).run()
    assert hub.pending() == []
    assert published_files(hub) == published_files(hub, publication.tag) == contents(publication)


def test_a_large_file_that_changes_is_refused(
    hub: HubServer, run_repository: Path, tmp_path: Path, pauses: list[float]
) -> None:
    """hf_xet hashes what it reads while it sends it; that hash is compared before anything is committed."""
    root = copy_repository(run_repository, tmp_path / "root")
    publication = make_publication(root, REPO, private=True)
    write(root, "results/publish/pytorch_lora_weights.safetensors", b"x" * 60_000)
    with pytest.raises(UserError, match="changed while it was sent"):
        uploader(publication, hub, pauses).run()
    assert published_files(hub) == {}


@pytest.mark.parametrize(
    ("error", "status", "passing"),
    [
        (
            ConnectionError("Network error: Request error: HTTP status client error (401 Unauthorized), domain: x"),
            401,
            False,
        ),
        (
            ConnectionError("Network error: Request error: HTTP status client error (403 Forbidden), domain: x"),
            403,
            False,
        ),
        (RuntimeError("HTTP status client error (404 Not Found), domain: x"), 404, False),
        (ConnectionError("HTTP status client error (429 Too Many Requests), domain: x"), 429, True),
        (ConnectionError("HTTP status server error (503 Service Unavailable), domain: x"), 503, True),
        (ConnectionError("Network error: Request error: error sending request"), None, True),
    ],
)
def test_an_error_is_what_its_status_says(error: Exception, status: int | None, passing: bool) -> None:
    found = Found.of(error)
    assert (found.status, found.passing) == (status, passing)
