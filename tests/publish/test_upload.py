"""Uploading to a Hub on loopback with the unmodified client: what arrives, and what a second run does."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants

from rtdmd.common.errors import UserError
from rtdmd.publish.upload import MAIN, Uploader
from rtdmd.publish.upload_http import Patience
from rtdmd.publish.upload_plan import Publication, make_publication
from tests.publish.hub_server import HubServer
from tests.publish.hub_store import Blob
from tests.publish.publication import REPO, TOKEN, commit, copy_repository, publish_again, usual_client, write

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the client's own
WRITES = ("create", "branch", "end branch", "commit", "tag", "lfs put", "preupload", "lfs batch")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    usual_client(monkeypatch)
    with HubServer(TOKEN) as server:
        yield server


@pytest.fixture
def publication(run_repository: Path) -> Publication:
    return make_publication(run_repository, REPO, private=True)


def uploader(publication: Publication, hub: HubServer) -> Uploader:
    return Uploader(publication, HfApi(endpoint=hub.url, token=True), Patience(sleep=lambda _: None))


def contents(publication: Publication) -> dict[str, bytes]:
    return {path: data if isinstance(data, bytes) else data.read_bytes() for path, data in publication.files.items()}


def published_files(hub: HubServer, revision: str = "main") -> dict[str, bytes]:
    return {path: data for path, data in hub.files(REPO, revision).items() if path != ".gitattributes"}


def test_everything_arrives_once_behind_a_tag(hub: HubServer, publication: Publication) -> None:
    said = uploader(publication, hub).run()
    repo = hub.repos[REPO]
    assert said == f"published {hub.url}/{REPO}/tree/{publication.tag}"
    assert published_files(hub) == published_files(hub, publication.tag) == contents(publication)
    assert repo.private
    assert repo.tags == {publication.tag: repo.branches["main"]}
    assert list(repo.branches) == ["main"]
    assert repo.history("main") == [f"Publish {publication.tag}", "initial commit"]
    assert sorted(hub.received.values()) == [1, 1]  # weights and picture, each stored once
    assert hub.requests["commit"] == 2
    assert hub.requests["resolve"] + hub.requests["download"] == 2 * len(publication.files)  # all came back: HEAD, GET


def test_a_second_run_sends_nothing(hub: HubServer, publication: Publication, run_repository: Path) -> None:
    uploader(publication, hub).run()
    hub.requests.clear()
    again = make_publication(run_repository, REPO, private=True)
    assert uploader(again, hub).run().endswith("is there already; nothing was sent")
    assert [name for name in WRITES if hub.requests[name]] == []


def test_a_later_commit_with_the_same_lineage_sends_nothing(
    hub: HubServer, publication: Publication, run_repository: Path, tmp_path: Path
) -> None:
    uploader(publication, hub).run()
    root = copy_repository(run_repository, tmp_path / "later")
    write(root, "notes.md", "only words\n")
    commit(root, "words")
    later = make_publication(root, REPO, private=True)
    assert later.record["git_commit"] != publication.record["git_commit"]
    assert later.tag == publication.tag
    assert uploader(later, hub).run().endswith("nothing was sent")


def test_review_stops_at_the_verified_branch(hub: HubServer, publication: Publication) -> None:
    said = uploader(publication, hub).run(review=True)
    repo = hub.repos[REPO]
    assert said == f"{hub.url}/{REPO}/tree/{publication.branch} is verified; the same command without --review goes on"
    assert published_files(hub, publication.branch) == contents(publication)
    assert published_files(hub) == {}
    assert repo.tags == {}
    uploader(publication, hub).run()
    assert published_files(hub) == contents(publication)
    assert sorted(hub.received.values()) == [1, 1]
    assert list(repo.branches) == ["main"]


def test_the_next_version_replaces_and_what_others_put_there_stays(
    hub: HubServer, publication: Publication, run_repository: Path, tmp_path: Path
) -> None:
    uploader(publication, hub).run()
    repo = hub.repos[REPO]
    _, _, files = repo.commits[repo.branches["main"]]
    repo.branches["main"] = repo.commit("by hand", repo.branches["main"], files | {"NOTES.md": Blob(b"mine\n")})
    root = copy_repository(run_repository, tmp_path / "next")
    (root / "dvc.yaml").write_text((root / "dvc.yaml").read_text().replace("samples.png", "grid.png"))
    publish_again(root, seed=1, picture="grid.png")
    second = make_publication(root, REPO, private=True)
    uploader(second, hub).run()
    assert published_files(hub) == {**contents(second), "NOTES.md": b"mine\n"}
    assert published_files(hub, publication.tag) == contents(publication)  # the first version is as it was
    assert set(repo.tags) == {publication.tag, second.tag}


def test_a_public_repository_is_not_filled_by_accident(hub: HubServer, publication: Publication) -> None:
    HfApi(endpoint=hub.url, token=True).create_repo(REPO, private=False)
    with pytest.raises(UserError, match=r"is public, publish\.private is true"):
        uploader(publication, hub).run()
    assert published_files(hub) == {}
    assert not hub.requests["branch"]


def test_a_repository_that_stays_private_is_no_public_one(hub: HubServer, run_repository: Path) -> None:
    """Both ways out of the message are gone."""
    HfApi(endpoint=hub.url, token=True).create_repo(REPO, private=True)
    public = make_publication(run_repository, REPO, private=False)
    ways = "make the repository public on the Hub, or set publish.private: true"
    with pytest.raises(UserError, match=rf"is private, publish\.private is false; {ways}"):
        uploader(public, hub).run()
    assert published_files(hub) == {}
    assert uploader(make_publication(run_repository, REPO, private=True), hub).run().startswith("published ")
    hub.repos[REPO].private = False
    assert uploader(public, hub).run().endswith("nothing was sent")


def test_public_when_asked_for(hub: HubServer, run_repository: Path) -> None:
    uploader(make_publication(run_repository, REPO, private=False), hub).run()
    assert not hub.repos[REPO].private


def test_a_tag_with_other_files_is_not_moved(hub: HubServer, publication: Publication) -> None:
    uploader(publication, hub).run()
    repo = hub.repos[REPO]
    first = next(oid for oid, (message, _, _) in repo.commits.items() if message == "initial commit")
    repo.tags[publication.tag] = first
    with pytest.raises(UserError, match=f"the tag {publication.tag} holds other files than results/publish"):
        uploader(publication, hub).run()
    assert repo.tags[publication.tag] == first


def test_without_a_token_nothing_is_asked(
    hub: HubServer, publication: Publication, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"no token for the Hub; log in with `hf auth login`, or set HF_TOKEN"):
        uploader(publication, hub).run()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        uploader(publication, hub).run()
    assert not hub.requests


def test_a_file_with_the_token_does_not_leave(hub: HubServer, run_repository: Path, tmp_path: Path) -> None:
    root = copy_repository(run_repository, tmp_path / "leak")
    write(root, "results/publish/resolved.json", f'{{"environment": "{TOKEN}"}}')
    leak = make_publication(root, REPO, private=True, allow_dirty=True)
    with pytest.raises(UserError, match=r"resolved\.json holds the token of the Hub") as caught:
        uploader(leak, hub).run()
    assert TOKEN not in str(caught.value)
    assert not hub.requests


def by_hand(hub: HubServer, added: dict[str, bytes]) -> None:
    """Someone else's commit to main."""
    repo = hub.repos[REPO]
    _, _, files = repo.commits[repo.branches["main"]]
    blobs = {path: Blob(data) for path, data in added.items()}
    repo.branches["main"] = repo.commit("by hand", repo.branches["main"], files | blobs)


def test_what_would_be_loaded_in_place_of_the_weights_goes_with_the_commit(
    hub: HubServer, publication: Publication, capsys: pytest.CaptureFixture[str]
) -> None:
    """Shards and their index beside one file, `.bin` beside `.safetensors`, another adapter: none is left on any
    revision that is shown, and what cannot be loaded instead stays."""
    HfApi(endpoint=hub.url, token=True).create_repo(REPO, private=True)
    foreign = {
        "transformer/diffusion_pytorch_model.safetensors.index.json": b"{}",
        "transformer/diffusion_pytorch_model-00001-of-00002.safetensors": b"old",
        "pytorch_lora_weights.bin": b"old",
        "adapter_config.json": b"{}",
    }
    kept = {"LICENSE": b"mine", "vae/diffusion_pytorch_model.safetensors": b"a VAE"}
    by_hand(hub, foreign | kept)
    uploader(publication, hub).run(review=True)
    assert published_files(hub, publication.branch) == contents(publication) | kept
    assert published_files(hub) == foreign | kept
    uploader(publication, hub).run()
    assert published_files(hub) == published_files(hub, publication.tag) == contents(publication) | kept
    said = "removing what would be loaded in place of these weights: adapter_config.json, pytorch_lora_weights.bin, tr"
    assert said in capsys.readouterr().err


def test_main_is_brought_back_to_a_tag_that_is_there(
    hub: HubServer, publication: Publication, run_repository: Path, tmp_path: Path
) -> None:
    """A, then B, then A again: main holds what was asked for last, and with --review the command that does it is
    told."""
    uploader(publication, hub).run()
    root = copy_repository(run_repository, tmp_path / "next")
    publish_again(root, seed=1)
    second = make_publication(root, REPO, private=True)
    uploader(second, hub).run()
    hub.requests.clear()
    said = uploader(publication, hub).run(review=True)
    assert said.endswith(f"but main holds {second.tag}; the same command without --review brings main back to it")
    assert not hub.requests["commit"]
    said = uploader(publication, hub).run()
    assert said.endswith(f"is there already, but main held {second.tag}; main holds {publication.tag} again")
    assert published_files(hub) == contents(publication)
    assert published_files(hub, second.tag) == contents(second)
    assert hub.repos[REPO].tags[publication.tag] != hub.repos[REPO].branches["main"]
    assert uploader(publication, hub).run().endswith("nothing was sent")
    by_hand(hub, {"transformer/model.fp16.safetensors": b"a variant"})
    assert uploader(publication, hub).run().endswith(f"held {publication.tag}; main holds {publication.tag} again")
    assert published_files(hub) == contents(publication)


@pytest.mark.parametrize("name", ["scheduler/scheduler_config.json", "pytorch_lora_weights.safetensors"])
def test_a_file_that_changes_during_the_upload_never_arrives(
    name: str, hub: HubServer, run_repository: Path, tmp_path: Path
) -> None:
    """A small file leaves as it was when it was checked; a large one that has changed is refused before any commit
    holds it, and a run after that takes the bytes that passed the gate."""
    root = copy_repository(run_repository, tmp_path / "root")
    publication = make_publication(root, REPO, private=True)
    passed = (root / "results/publish" / name).read_bytes()
    wanted = {path: (root / "results/publish" / path).read_bytes() for path in publication.record["folder"]}
    write(root, f"results/publish/{name}", bytes([*passed[:-1], passed[-1] ^ 1]))
    large = isinstance(publication.files[name], Path)
    if large:
        with pytest.raises(UserError, match=f"{name} changed while it was sent; run `rtdmd upload` again"):
            uploader(publication, hub).run()
        assert list(hub.repos[REPO].commits.values())[-1][0] == "initial commit"
        assert hub.repos[REPO].tags == {}
        write(root, f"results/publish/{name}", passed)
    uploader(publication, hub).run()
    there = published_files(hub)
    assert there[name] == passed
    assert all(there[path] == data for path, data in wanted.items() if path != "README.md")


def test_main_takes_over_what_was_verified(
    hub: HubServer, run_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at the branch and the commit to main every file here changes: main never sees it."""
    root = copy_repository(run_repository, tmp_path / "root")
    publication = make_publication(root, REPO, private=True)
    sent = contents(publication)
    look = Uploader._verify

    def look_then_change(self: Uploader, revision: str, sha256: dict[str, str]) -> None:
        look(self, revision, sha256)
        for path in publication.record["folder"]:
            write(root, f"results/publish/{path}", b"other bytes")

    monkeypatch.setattr(Uploader, "_verify", look_then_change)
    uploader(publication, hub).run()
    assert published_files(hub, MAIN) == published_files(hub, publication.tag) == sent
