"""Every refusal of `rtdmd upload` says what to do: here each is provoked, its advice taken, and the upload done.

`snakemake publish` and `snakemake train_rtdmd` stand for running the stages, which in this repository are shell lines.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants

from rtdmd.common.errors import UserError
from rtdmd.common.files import read_json, sha256_file, write_json
from rtdmd.publish.upload import Uploader
from rtdmd.publish.upload_http import Patience
from rtdmd.publish.upload_plan import make_publication
from tests.publish.hub_server import HubServer
from tests.publish.publication import REPO, TOKEN, commit, copy_repository, run, run_stages, usual_client, write

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the client's own
Change = Callable[["Here"], None]


@dataclass
class Here:
    """The run, the Hub, and what the user passes."""

    root: Path
    hub: HubServer
    patch: pytest.MonkeyPatch
    repo_id: str | None = REPO
    private: bool = True
    allow_dirty: bool = False

    def upload(self) -> str:
        publication = make_publication(self.root, self.repo_id, self.private, self.allow_dirty)
        return Uploader(publication, HfApi(endpoint=self.hub.url, token=True), Patience(sleep=lambda _: None)).run()

    def snakemake(self) -> None:
        run_stages(self.root)
        if run(self.root, "git", "status", "--porcelain"):
            commit(self.root)

    def change(self, name: str, content: str | bytes) -> None:
        write(self.root, name, content)


@pytest.fixture
def here(run_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Here]:
    usual_client(monkeypatch)
    with HubServer(TOKEN) as hub:
        yield Here(copy_repository(run_repository, tmp_path / "root"), hub, monkeypatch)


def spoil_lock(here: Here) -> None:
    here.change("code/sub/model.py", "x = 2\n")


def spoil_file(here: Here) -> None:
    as_it_is(here)
    here.change("results/publish/samples.png", b"another picture")


def lose_file(here: Here) -> None:
    as_it_is(here)
    (here.root / "results/publish/samples.png").unlink()


def lose_lock(here: Here) -> None:
    (here.root / "dvc.lock").unlink()


def as_it_is(here: Here) -> None:
    """--allow-dirty, with which later refusals are reached too."""
    here.allow_dirty = True


def declare_pickle(here: Here) -> None:
    as_it_is(here)
    here.change("dvc.yaml", (here.root / "dvc.yaml").read_text().replace("samples.png", "state.pt"))
    here.change("results/publish/state.pt", b"pickle")


def forget_pickle(here: Here) -> None:
    here.change("dvc.yaml", (here.root / "dvc.yaml").read_text().replace("state.pt", "samples.png"))


def make(private: bool) -> Change:
    def change(here: Here) -> None:
        HfApi(endpoint=here.hub.url, token=True).create_repo(REPO, private=private)
        here.private = not private

    return change


def on_the_hub(private: bool) -> Change:
    def change(here: Here) -> None:
        here.hub.repos[REPO].private = private

    return change


def set_private(private: bool) -> Change:
    def change(here: Here) -> None:
        here.private = private

    return change


def wrong_tag(here: Here) -> None:
    here.upload()
    repo = here.hub.repos[REPO]
    (tag,) = repo.tags
    repo.tags[tag] = next(oid for oid, (message, _, _) in repo.commits.items() if message == "initial commit")


def delete_tag(here: Here) -> None:
    here.hub.repos[REPO].tags.clear()


def no_token(here: Here) -> None:
    here.patch.delenv("HF_TOKEN")
    here.patch.setattr(constants, "HF_TOKEN_PATH", str(here.root / "none"))


def rename(name: str | None) -> Change:
    def change(here: Here) -> None:
        here.repo_id = name

    return change


def card_for(name: str) -> Change:
    """`snakemake publish` with another publish.repo_id: the card and its record are written for it."""

    def change(here: Here) -> None:
        here.repo_id = name
        record = here.root / "made/provenance.json"
        record.write_text(record.read_text().replace(REPO, name))
        gate = here.root / "made/gate.json"
        tree = read_json(gate)
        tree["sha256"]["provenance.json"] = sha256_file(record)
        write_json(gate, tree)
        params = here.root / "params.yaml"
        params.write_text(params.read_text().replace(REPO, name))
        here.snakemake()

    return change


def leak(here: Here) -> None:
    as_it_is(here)
    here.change("results/publish/resolved.json", f'{{"environment": "{TOKEN}"}}')


def mend_leak(here: Here) -> None:
    here.change("results/publish/resolved.json", '{"stage": "publish"}')


def offline(state: bool) -> Change:
    return lambda here: here.patch.setattr(constants, "HF_HUB_OFFLINE", state)


def touch_ignored(here: Here) -> None:
    here.change(".gitignore", "results/\n.dvc/\n#\n")


def commit_all(here: Here) -> None:
    commit(here.root)


def set_token(here: Here) -> None:
    here.patch.setenv("HF_TOKEN", TOKEN)


CASES: dict[str, tuple[Change, str, Change]] = {
    "stale": (spoil_lock, "run the stages again (`snakemake publish`)", Here.snakemake),
    "stale, as it is": (spoil_lock, "or publish it as it is with --allow-dirty", as_it_is),
    "not committed": (touch_ignored, "commit (dvc.lock and results/ too)", commit_all),
    "no lock": (lose_lock, "`snakemake --cores all` or `dvc repro` runs the stages", Here.snakemake),
    "another file": (spoil_file, "not what passed the gate; `snakemake publish` makes and tests it", Here.snakemake),
    "no file": (lose_file, "samples.png: no such file; `snakemake publish` makes it", Here.snakemake),
    "a kind that stays": (declare_pickle, "files of this kind are not uploaded; allowed: .json", forget_pickle),
    "no name": (rename(None), "repo_id: null; set it to owner/name and run `snakemake publish`", rename(REPO)),
    "another name": (rename("a/b"), "was written for somebody/few-steps; `snakemake publish`", card_for("a/b")),
    "public": (make(private=False), "make the repository private on the Hub", on_the_hub(private=True)),
    "public, as it is": (make(private=False), "or set publish.private: false", set_private(False)),
    "private": (make(private=True), "make the repository public on the Hub", on_the_hub(private=False)),
    "private, as it is": (make(private=True), "or set publish.private: true", set_private(True)),
    "a wrong tag": (wrong_tag, "delete it on the Hub if it is wrong", delete_tag),
    "no token": (no_token, "log in with `hf auth login`, or set HF_TOKEN", set_token),
    "offline": (offline(True), "HF_HUB_OFFLINE is set: the Hub cannot be asked; unset it", offline(False)),
    "a leak": (leak, "holds the token of the Hub; remove it", mend_leak),
}


@pytest.mark.parametrize("name", CASES)
def test_the_advice_of_a_refusal_works(name: str, here: Here) -> None:
    provoke, says, follow = CASES[name]
    provoke(here)
    with pytest.raises(UserError, match=re.escape(says)) as refused:
        here.upload()
    assert "\n" not in str(refused.value)
    follow(here)
    assert re.match("published |.* is there already", here.upload())
    assert here.hub.repos[here.repo_id or ""].tags
