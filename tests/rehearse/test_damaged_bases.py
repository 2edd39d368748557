"""One thing broken at a time in a stand-in of a published base: what the first stage that reads it says, in one line
that names the file and what to do. All of it is known before a weight is read."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
import torch
from httpx2 import Request, Response
from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError
from safetensors.torch import load_file, save_file

from rtdmd.backbones import require_whole
from rtdmd.common.errors import UserError
from rtdmd.common.files import read_json, write_json
from rtdmd.common.pins import UNPINNED
from rtdmd.rehearse.layouts import FLUX1, KLEIN_4B, KLEIN_BASE_4B, SD35M
from tests.backbones.folder_hub import FolderHub
from tests.rehearse.bases import COMMIT, model_of, on_folder

SHARD = "transformer/diffusion_pytorch_model-00002-of-00003.safetensors"
INDEX = "transformer/diffusion_pytorch_model.safetensors.index.json"
TEXT_SHARD = "text_encoder_2/model-00001-of-00002.safetensors"
TEXT_INDEX = "text_encoder_2/model.safetensors.index.json"
BIAS = "proj_out.bias"
QUERY = "encoder.block.0.layer.0.SelfAttention.q.weight"
FIRST = "diffusion_pytorch_model-00001-of-00003.safetensors"
CLIP, NORM = "text_encoder/model.safetensors", "final_layer_norm.bias"
VAE = "vae/diffusion_pytorch_model.safetensors"
SCHEDULER = "scheduler/scheduler_config.json"
TEMPLATE = "tokenizer/chat_template.jinja"
BACK = "it lies outside this repository: copy or download it there again, from where the folder came"
Damage = Callable[[Path], None]


def delete(path: Path) -> None:
    path.unlink()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-16])


def without(name: str) -> Damage:
    def change(path: Path) -> None:
        tensors = load_file(path)
        tensors.pop(name)
        save_file(tensors, path, metadata={"format": "pt"})

    return change


def cast(name: str, dtype: torch.dtype) -> Damage:
    def change(path: Path) -> None:
        tensors = load_file(path)
        save_file(tensors | {name: tensors[name].to(dtype)}, path, metadata={"format": "pt"})

    return change


def placed(name: str, file: str | None) -> Damage:
    """An index that places a tensor in another file, or does not name it."""

    def change(path: Path) -> None:
        index = read_json(path)
        index["weight_map"].pop(name, None)
        index["weight_map"] |= {} if file is None else {name: file}
        write_json(path, index)

    return change


def edit(**entries: object) -> Damage:
    return lambda path: write_json(path, read_json(path) | entries)


CUT = r"{file} is damaged \(\d+ bytes, but its header describes \d+\); "
KINDS = "allowed: BF16, F16, F32, F64"
DAMAGES: list[tuple[str, str, Damage, str]] = [
    (FLUX1, SHARD, delete, "{file} is missing; {back}"),
    (FLUX1, SHARD, truncate, CUT + "{back}"),
    (FLUX1, TEXT_SHARD, delete, "{file} is missing; {back}"),
    (FLUX1, TEXT_SHARD, truncate, CUT + "{back}"),
    (FLUX1, INDEX, delete, "{folder}/transformer/diffusion_pytorch_model.safetensors is missing; {back}"),
    (FLUX1, INDEX, placed(BIAS, None), f"{{file}} places {BIAS} in no file, but it is in {FIRST} .*; {{back}}"),
    (
        FLUX1,
        INDEX,
        placed("extra.bias", FIRST),
        f"{{file}} places extra.bias in {FIRST}, but it is in no file .*; {{back}}",
    ),
    (
        FLUX1,
        TEXT_INDEX,
        placed(QUERY, None),
        f"{{file}} places {QUERY} in no file, but it is in model-00001-.*; {{back}}",
    ),
    (
        FLUX1,
        TEXT_SHARD,
        without(QUERY),
        f"{{folder}}/{TEXT_INDEX} places {QUERY} in model-00001-.* in no file .*; {{back}}",
    ),
    (FLUX1, CLIP, without(NORM), f"{{folder}}/text_encoder are not this model's; missing: {NORM}; {{back}}"),
    (FLUX1, TEXT_SHARD, cast(QUERY, torch.float8_e4m3fn), f"{{file}} has {QUERY} as F8_E4M3; {KINDS}"),
    (FLUX1, VAE, cast("decoder.conv_in.bias", torch.int8), f"{{file}} has decoder.conv_in.bias as I8; {KINDS}"),
    (
        FLUX1,
        "transformer/config.json",
        edit(_class_name="SD3Transformer2DModel"),
        "{file} is of a SD3Transformer2DModel, not of a FluxTransformer2DModel; {back}",
    ),
    (FLUX1, "text_encoder_2/config.json", edit(model_type="bert"), "{file} is of a bert, not of a t5; {back}"),
    (
        FLUX1,
        "model_index.json",
        edit(_class_name="StableDiffusion3Pipeline"),
        "model.family: flux1 needs a FluxPipeline, but {folder} is a StableDiffusion3Pipeline; name one, or set model",
    ),
    (FLUX1, SCHEDULER, delete, r"{folder}/scheduler: a file is damaged or missing \(.*scheduler_config.*\); {back}"),
    (SD35M, "tokenizer/vocab.json", delete, "{file} is missing, and so are its other forms; {back}"),
    (SD35M, "tokenizer_2/merges.txt", delete, "{file} is missing; {back}"),
    (SD35M, "tokenizer/tokenizer_config.json", delete, "{file} is missing, or has no model_max_length; {back}"),
    (KLEIN_BASE_4B, TEMPLATE, delete, "{file} is missing, and .*tokenizer_config.json has no chat_template; {back}"),
]
PRESET = {FLUX1: "flux1-dev", SD35M: "sd35m", KLEIN_BASE_4B: "flux2-klein-4b"}


@pytest.mark.parametrize(("base", "file", "damage", "says"), DAMAGES)
def test_what_is_broken_is_one_line(
    base: str, file: str, damage: Damage, says: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(bases[base], tmp_path / "base"))
    damage(folder / file)
    with pytest.raises(UserError) as refused:
        require_whole(on_folder(PRESET[base], folder))
    line = str(refused.value)
    expected = says.format(file=folder / file, folder=folder, back=BACK)
    assert re.search(rf"^model\.teacher: (the weights in )?{expected}", line), line
    assert "\n" not in line


STUDENT: list[tuple[str, Damage, str]] = [
    ("transformer/config.json", edit(num_layers=3), r"are not this model's; missing: transformer_blocks\.2\."),
    ("text_encoder/model-00002-of-00002.safetensors", without("model.norm.weight"), r"places model\.norm\.weight in"),
    (TEMPLATE, delete, r"chat_template\.jinja is missing, and \S+ has no chat_template"),
    ("vae/config.json", edit(scaling_factor=2.0), r"its vae has scaling_factor: 2\.0 in its config"),
    (SCHEDULER, edit(shift_terminal=0.5), r"its scheduler sets the 4 steps to 1, "),
]


@pytest.mark.parametrize(("file", "damage", "says"), STUDENT)
def test_a_students_base_is_looked_through_by_the_first_stage_too(
    file: str, damage: Damage, says: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    """Its text encoder and tokenizer are read by publishing alone, days later."""
    folder = Path(shutil.copytree(bases[KLEIN_4B], tmp_path / "student"))
    damage(folder / file)
    student = {"model": str(folder), "revision": None}
    model = model_of("flux2-klein-4b", teacher=str(bases[KLEIN_BASE_4B]), revision=None, student=student)
    with pytest.raises(UserError, match=rf"^model\.student\.model: .*{says}"):
        require_whole(model)


def test_a_revision_to_be_filled_in_is_asked_for(bases: dict[str, Path]) -> None:
    model = model_of("flux2-klein-4b", student={"model": KLEIN_4B, "revision": UNPINNED})
    says = rf"^model\.revision: still the placeholder; write the commit of {KLEIN_BASE_4B} that you trust: python -c "
    with pytest.raises(UserError, match=says):
        require_whole(model.model_copy(update={"revision": UNPINNED}))
    with pytest.raises(UserError, match=rf"^model\.student\.revision: still the placeholder; .* of {KLEIN_4B} that"):
        require_whole(model.of_student())


@pytest.mark.parametrize("file", [SHARD, VAE])
def test_what_the_repository_itself_lacks_is_not_asked_for_again(
    file: str, bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit whose indexes name a file that it does not have: the advice to download it again would never end."""
    folder = Path(shutil.copytree(bases[FLUX1], tmp_path / "hub"))
    (folder / file).unlink()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", FolderHub({FLUX1: folder}, tmp_path / "cache"))
    answer = Response(404, request=Request("HEAD", f"https://hub.test/{FLUX1}"))
    errors = [RemoteEntryNotFoundError("404", response=answer), LocalEntryNotFoundError("offline")]
    asked: list[str] = []

    def refuse(_: str, name: str, revision: str) -> str:
        asked.append(f"{name}@{revision}")
        raise errors.pop(0)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    says = rf"^model\.teacher: {FLUX1} has no {file} at {COMMIT}, and its own files name it; set model\.revision to a"
    with pytest.raises(UserError, match=says):
        require_whole(model_of("flux1-dev"))
    with pytest.raises(UserError, match=r"is not on this machine and the Hub cannot be reached; connect once and run"):
        require_whole(model_of("flux1-dev"))
    assert asked == [f"{file}@{COMMIT}"] * 2
