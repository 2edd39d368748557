"""The read-only Hub, through the download code of a real run: what is fetched, and each refusal as the line that names
it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import httpx2
import pytest
from huggingface_hub import constants

from rtdmd.common.errors import UserError
from rtdmd.common.hub import etag
from rtdmd.prompts.files import dataset_file
from rtdmd.rehearse.hub import Hub
from rtdmd.rehearse.hub_store import Fetch
from rtdmd.rewards.hub import fetch_scorer
from rtdmd.rewards.registration import RewardParams
from rtdmd.rewards.registry import REWARDS

REVISION = "5" * 40
PICKLED = b"weights" * 20_000
GATED = "xswu/HPSv2 is gated: accept its terms on https://huggingface.co/xswu/HPSv2, then run `hf auth login`"
FILES = {"HPS_v2_compressed.pt": PICKLED, "HPS_v2.1_compressed.pt": PICKLED + b".1", "README.md": b"# HPS\n"}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """One repository of a scorer, gated, and one data set; the client is logged in."""
    for name, data in FILES.items():
        (tmp_path / "scorer").mkdir(exist_ok=True)
        (tmp_path / "scorer" / name).write_bytes(data)
    (tmp_path / "set" / "data").mkdir(parents=True)
    (tmp_path / "set" / "data" / "test.txt").write_text("a cat\n")
    monkeypatch.setenv("HF_TOKEN", "hf_rehearsal")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with Hub("hf_rehearsal") as server:
        server.add("xswu/HPSv2", tmp_path / "scorer", REVISION, gated=True)
        server.add("datasets/owner/prompts", tmp_path / "set", REVISION)
        _turn_to(server.url, monkeypatch)
        yield server


def _turn_to(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client asks this address, as with HF_ENDPOINT set before it was imported."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    )


def scorer(revision: str = REVISION) -> RewardParams:
    """An entry of params.yaml."""
    keys = {"model": "xswu/HPSv2", "revision": revision, "base": "laion/CLIP", "base_revision": REVISION}
    return REWARDS["hpsv2"].settings.model_validate({"name": "hpsv2", **keys})


def test_what_a_scorer_reads_is_fetched_once_and_nothing_beside_it(hub: Hub) -> None:
    for _ in range(2):
        folder = fetch_scorer(scorer(), "model")
    weights = folder / "HPS_v2.1_compressed.pt"
    assert hub.fetched == {Fetch("xswu/HPSv2", "HPS_v2.1_compressed.pt"): 1}
    assert weights.read_bytes() == FILES[weights.name]
    assert etag(weights) == hub.repos["xswu/HPSv2"].commits[REVISION][2][weights.name].lfs


def test_a_file_of_a_data_set(hub: Hub) -> None:
    for _ in range(2):
        found = dataset_file("owner/prompts", REVISION, "data/test.txt", "prepare_prompts.sets.a[0]")
    assert found.read_text() == "a cat\n"
    assert hub.fetched == {Fetch("datasets/owner/prompts", "data/test.txt"): 1}


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("no access", f"rewards: hpsv2: model: {GATED}"),
        ("no token", f"rewards: hpsv2: model: {GATED}"),
        (
            "unknown",
            "rewards: hpsv2: model: https://huggingface.co/xswu/HPSv2 does not exist, or needs",
        ),
        ("commit", f"rewards: hpsv2: revision: xswu/HPSv2 has no commit {'6' * 40}; see"),
        ("placeholder", "rewards: hpsv2: revision: still the placeholder; write the commit of xswu/HPSv2"),
        (
            "unreachable",
            f"rewards: hpsv2: model: xswu/HPSv2 at {REVISION} is not on this machine and the Hub",
        ),
    ],
)
def test_one_thing_broken_is_named(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fault: str, says: str
) -> None:
    wanted = {"commit": "6" * 40, "placeholder": "0" * 40}.get(fault, REVISION)
    if fault == "no access":
        hub.repos["xswu/HPSv2"].access = False
    elif fault == "no token":
        monkeypatch.setenv("HF_TOKEN", "hf_other")
    elif fault == "unknown":
        del hub.repos["xswu/HPSv2"]
    elif fault == "unreachable":
        monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=lambda _: None))
        with socket.socket() as nobody:
            nobody.bind(("127.0.0.1", 0))
            _turn_to(f"http://127.0.0.1:{nobody.getsockname()[1]}", monkeypatch)
    with pytest.raises(UserError) as told:
        fetch_scorer(scorer(wanted), "model")
    assert str(told.value).startswith(says)
    assert not hub.fetched
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.stat().st_size > 200]


def test_a_download_goes_on_where_it_broke_off(hub: Hub) -> None:
    blob = hub.repos["xswu/HPSv2"].commits[REVISION][2]["HPS_v2_compressed.pt"]
    address = f"{hub.url}/xswu/HPSv2/resolve/main/HPS_v2_compressed.pt"
    sent = httpx2.get(
        address, headers={"Authorization": "Bearer hf_rehearsal"}, follow_redirects=False, trust_env=False
    )
    assert sent.status_code == 302
    rest = httpx2.get(sent.headers["Location"], headers={"Range": "bytes=139990-"}, trust_env=False)
    middle = httpx2.get(sent.headers["Location"], headers={"Range": "bytes=7-13"}, trust_env=False)
    assert (rest.status_code, rest.content) == (206, hub.bytes_of(blob)[139990:])
    assert (middle.content, middle.headers["Content-Range"]) == (b"weights", "bytes 7-13/140000")
