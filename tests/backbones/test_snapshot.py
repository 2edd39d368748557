"""Hub errors as sentences that say what to do, and what the text conditioning is computed from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import httpx2
import huggingface_hub
import pytest
from huggingface_hub import errors

from rtdmd.backbones.snapshot import base_folder, text_identity
from rtdmd.common.errors import UserError
from rtdmd.common.files import sha256_file, sha256_tree
from rtdmd.common.model_files import files_hash, teacher_files
from rtdmd.config import ModelParams, preset
from tests.backbones.folder_hub import FolderHub, names_in

COMMIT = "b1148b4028b9ec56ebd36444c193d56aeff7ab56"
REPO = "stabilityai/stable-diffusion-3.5-medium"


def hub_model() -> ModelParams:
    return preset("world", {"model": {"teacher": REPO, "revision": COMMIT}}).model


def refusal(kind: type[errors.HfHubHTTPError], status: int) -> errors.HfHubHTTPError:
    return kind("refused", response=httpx2.Response(status, request=httpx2.Request("GET", f"https://hub.test/{REPO}")))


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (refusal(errors.GatedRepoError, 403), r"model\.teacher: .* is gated: accept its terms on .*, then run `hf"),
        (refusal(errors.RepositoryNotFoundError, 404), "does not exist, or needs `hf auth login`"),
        (refusal(errors.RevisionNotFoundError, 404), rf"model\.revision: .* has no commit {COMMIT}"),
        (errors.LocalEntryNotFoundError("offline"), "not on this machine and the Hub cannot be reached"),
        (refusal(errors.HfHubHTTPError, 500), "the Hub refused"),
    ],
)
def test_what_the_hub_refuses_is_one_sentence(error: Exception, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(UserError, match=says):
        base_folder(hub_model(), text=True)


def test_an_unfilled_revision_is_refused_before_anything_is_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("it was asked for"))
    says = r"model\.revision: still the placeholder; write the commit of stabilityai/.* that you trust: python -c"
    with pytest.raises(UserError, match=says):
        base_folder(preset("sd35m").model, text=True)


def repository(folder: Path, made: Path) -> Path:
    """A repository as the field has it: the pipeline's folder, and much beside it that no part reads."""
    whole = Path(shutil.copytree(made, folder))
    encoder = whole / "text_encoder"
    index = {"weight_map": dict.fromkeys("ab", "model-00001-of-00002.safetensors") | {"c": SECOND}}
    (encoder / "model.safetensors").rename(encoder / "model-00001-of-00002.safetensors")
    (encoder / SECOND).write_bytes(b"0" * 9)
    (encoder / "model.safetensors.index.json").write_text(json.dumps(index))
    for name in BESIDE:
        (whole / name).parent.mkdir(exist_ok=True)
        (whole / name).write_bytes(b"0")
    return whole


SECOND = "model-00002-of-00002.safetensors"
BESIDE = (
    "README.md",
    "sd3.5_medium.safetensors",
    "text_encoders/t5xxl_fp16.safetensors",
    "text_encoder/model.fp16-00001-of-00002.safetensors",
    "text_encoder/model.safetensors.index.fp16.json",
    "text_encoder/pytorch_model.bin",
    "text_encoder_2/model.fp16.safetensors",
    "text_encoder_3/model-00001-of-00002.safetensors",
    "transformer/diffusion_pytorch_model.fp16.safetensors",
    "transformer/extra/diffusion_pytorch_model.safetensors",
    "vae_1_0/config.json",
)


@pytest.mark.parametrize(("text", "vae"), [(True, True), (False, True), (True, False)])
def test_the_parts_and_files_that_the_indexes_name_are_downloaded_and_nothing_else(
    text: bool, vae: bool, monkeypatch: pytest.MonkeyPatch, tiny_teacher: Path, tmp_path: Path
) -> None:
    source = repository(tmp_path / "hub", tiny_teacher)
    hub = FolderHub({REPO: source}, tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
    assert base_folder(hub_model(), text=text, vae=vae) == hub.cache / REPO
    assert hub.commits == {f"{REPO}@{COMMIT}"}
    names = names_in(source) - {*BESIDE}
    texts = {name for name in names if name.startswith(("text_encoder", "tokenizer"))}
    wanted = names - (set() if text else texts) - (set() if vae else {f"vae/{SINGLE}"})
    there = names_in(hub.cache / REPO)
    assert there == wanted
    assert not text or f"text_encoder/{SECOND}" in there


SINGLE = "diffusion_pytorch_model.safetensors"


def test_weights_come_last_so_that_an_ended_download_is_not_taken_for_a_whole_one(
    monkeypatch: pytest.MonkeyPatch, tiny_teacher: Path, tmp_path: Path
) -> None:
    """What is here counts as whole by its weights; the texts beside them are there before."""
    source = repository(tmp_path / "hub", tiny_teacher)
    hub = FolderHub({REPO: source}, tmp_path / "cache")
    seen: list[set[str]] = []

    def ended(repo: str, revision: str, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        if any("safetensors" in pattern and "index" not in pattern for pattern in allow_patterns):
            seen.append(names_in(hub.cache / REPO))
        return hub(repo, revision, allow_patterns, ignore_patterns)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", ended)
    base_folder(hub_model(), text=True)
    texts = {name for name in teacher_files(source) if not name.endswith(".safetensors")}
    assert len(seen) == 1
    assert texts <= seen[0]
    assert not any(name.endswith(".safetensors") for name in seen[0])


def test_a_whole_snapshot_asks_nobody(monkeypatch: pytest.MonkeyPatch, tiny_teacher: Path, tmp_path: Path) -> None:
    source = repository(tmp_path / "hub", tiny_teacher)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: str(source / "model_index.json"))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("it was asked for"))
    assert base_folder(hub_model(), text=True) == source


def test_the_files_of_a_folder_are_those_of_its_indexes(tiny_teacher: Path, tmp_path: Path) -> None:
    source = repository(tmp_path / "hub", tiny_teacher)
    names = names_in(source) - {*BESIDE}
    assert set(teacher_files(source)) == names
    whole = teacher_files(tiny_teacher)
    assert files_hash(tiny_teacher, whole, tmp_path) == sha256_tree(tiny_teacher)


def test_text_identity_changes_with_the_text_parts_alone(tiny_teacher: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_teacher, tmp_path / "copy"))
    model = preset("world", {"model": {"teacher": str(folder)}}).model
    before = text_identity(model)["files"]
    assert len(before) == 10  # 2 x (encoder: config, weights; tokenizer: two files), index, transformer config
    assert before["text_encoder/model.safetensors"] == sha256_file(folder / "text_encoder" / "model.safetensors")
    (folder / "vae" / "config.json").write_text("{}")
    assert text_identity(model)["files"] == before
    (folder / "tokenizer" / "tokenizer_config.json").write_text("{}")
    after = text_identity(model)["files"]
    assert [name for name in before if before[name] != after[name]] == ["tokenizer/tokenizer_config.json"]
    assert text_identity(hub_model()) == {"teacher": REPO, "revision": COMMIT}
