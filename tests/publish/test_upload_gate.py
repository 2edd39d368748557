"""The gate on a revision of a repository: what a stranger's diffusers loads from all that is there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from rtdmd.common.errors import RtdmdError, UserError
from rtdmd.common.files import load_tensors, sha256_bytes, sha256_file
from rtdmd.config import load_params
from rtdmd.publish import export, upload
from rtdmd.publish.export import gate_folder
from rtdmd.publish.merge import MERGED
from rtdmd.publish.upload import Uploader
from rtdmd.publish.upload_http import Patience
from rtdmd.publish.upload_plan import Publication
from rtdmd.stages import publish
from tests.publish.exports import gate_in_process, publish_workspace
from tests.publish.hub_server import HubServer
from tests.publish.hub_store import Blob
from tests.publish.publication import REPO, TOKEN, usual_client

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the client's own


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    usual_client(monkeypatch)
    with HubServer(TOKEN) as server:
        yield server


def publication_of(folder: Path) -> Publication:
    """Every file of a published folder, as an upload of it would send them."""
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    sha256 = {name: sha256_file(path) for name, path in paths.items()}
    record = {"folder": sha256, "files": sha256, "git_commit": None, "dvc_lock": {"sha256": "0" * 64}}
    upload_record = json.dumps(record).encode()
    files = {name: path.read_bytes() for name, path in paths.items()} | {"upload.json": upload_record}
    sent = sha256 | {"upload.json": sha256_bytes(upload_record)}
    return Publication(REPO, True, "dvc-0", files, sent, record, ())


def test_a_revision_is_put_through_the_gate_before_main_gets_it(
    hub: HubServer, tiny_teacher: Path, tiny_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A repository that holds shards and their index: with them plain diffusers loads the base, and the gate refuses;
    the upload's own commit leaves them out, and passes."""
    publish_workspace(tmp_path, tiny_teacher, tiny_clip, {"publish": {"repo_id": REPO}})
    params = load_params(tmp_path / "params.yaml")
    gate = partial(gate_folder, params=params, root=tmp_path, repo_id=REPO)
    base = tmp_path / "data/world/teacher" / MERGED
    shard = "diffusion_pytorch_model-00001-of-00001.safetensors"
    index = {"metadata": {}, "weight_map": dict.fromkeys(load_tensors(base)[0], shard)}
    with gate_in_process(monkeypatch):
        with monkeypatch.context() as untested:
            passed = {"keys": [0, 0], "from_student": {"0": 0.0}, "from_base": {"0": 0.0}}
            untested.setattr(export, "run_gate", lambda *_: {"forms": {"lora": passed}})
            publish.run(tmp_path)
        found = publication_of(tmp_path / "results/publish")
        HfApi(endpoint=hub.url, token=True).create_repo(REPO, private=True)
        repo = hub.repos[REPO]
        _, _, files = repo.commits[repo.branches["main"]]
        there = {
            f"transformer/{shard}": Blob(base.read_bytes()),
            "transformer/diffusion_pytorch_model.safetensors.index.json": Blob(json.dumps(index).encode()),
        }
        repo.branches["main"] = before = repo.commit("by hand", repo.branches["main"], files | there)
        uploader = Uploader(found, HfApi(endpoint=hub.url, token=True), Patience(sleep=lambda _: None))
        with monkeypatch.context() as blind:
            blind.setattr(upload, "shadows", lambda *_: [])
            with pytest.raises(RtdmdError, match=r"the gate refuses this export.*merged"):
                uploader.run(gate=gate)
        assert repo.branches["main"] == before
        assert repo.tags == {}
        assert uploader.run(gate=gate).startswith("published ")
        assert not there.keys() & hub.files(REPO).keys()
        (tmp_path / "results/train_rtdmd/generator.safetensors").unlink()
        with pytest.raises(UserError, match=r"generator\.safetensors: no such file; `snakemake train_rtdmd` makes it"):
            uploader.run(gate=gate)
