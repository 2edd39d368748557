"""Hub errors as sentences that say what to do, and what the text conditioning is computed from."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import httpx2
import huggingface_hub
import pytest
from huggingface_hub import errors

from rtdmd.backbones.snapshot import teacher_folder, text_identity
from rtdmd.common.errors import UserError
from rtdmd.common.files import sha256_file
from rtdmd.config import ModelParams, preset

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
        teacher_folder(hub_model(), text=True)


def test_an_unfilled_revision_is_refused_before_anything_is_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("it was asked for"))
    says = r"model\.revision: still the placeholder; write the commit of stabilityai/.* that you trust: python -c"
    with pytest.raises(UserError, match=says):
        teacher_folder(preset("sd35m").model, text=True)


@pytest.mark.parametrize(("text", "vae"), [(False, True), (True, False)])
def test_only_what_is_asked_for_is_downloaded_at_the_pinned_commit(
    text: bool, vae: bool, monkeypatch: pytest.MonkeyPatch, tiny_teacher: Path
) -> None:
    asked: dict[str, Any] = {}

    def download(repo: str, **options: Any) -> str:
        asked.update(options, repo=repo)
        return str(tiny_teacher)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert teacher_folder(hub_model(), text=text, vae=vae) == tiny_teacher
    assert (asked["repo"], asked["revision"]) == (REPO, COMMIT)
    assert ("text_encoder*/*" in asked["allow_patterns"]) == text
    assert ("vae/*" in asked["allow_patterns"]) == vae
    assert "vae/config.json" in asked["allow_patterns"] or vae  # the latents' shape needs it


@pytest.mark.parametrize("name", ["sd35m", "flux1-dev", "flux2-klein-4b"])
def test_the_pipelines_folders_are_taken_and_single_file_copies_left(
    name: str, monkeypatch: pytest.MonkeyPatch, tiny_teacher: Path
) -> None:
    """A repository also holds its weights as one file at the top, tens of GiB that no pipeline folder needs."""
    asked: dict[str, Any] = {}
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda _, **o: asked.update(o) or str(tiny_teacher))
    teacher_folder(preset(name, {"model": {"revision": COMMIT}}).model, text=True)
    wanted = [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/model-00001-of-00002.safetensors",
        "text_encoder_2/config.json",
        "text_encoder_3/model.safetensors.index.json",
        "tokenizer/chat_template.jinja",
        "tokenizer_2/spiece.model",
        "transformer/diffusion_pytorch_model-00001-of-00003.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    ]
    left = ["README.md", "flux1-dev.safetensors", "ae.safetensors", "text_encoder/model.fp16.safetensors", "a.gguf"]
    filters = {key: asked[key] for key in ("allow_patterns", "ignore_patterns")}
    assert list(huggingface_hub.utils.filter_repo_objects([*wanted, *left], **filters)) == wanted


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
