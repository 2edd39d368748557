"""A teacher's folder runs no code of its own and is loaded to the last tensor, or refused in one line."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from safetensors.torch import load_file, save_file

from rtdmd.backbones import load_backbone
from rtdmd.backbones.loading import check_base
from rtdmd.common.errors import UserError
from rtdmd.config import ModelParams, preset
from tests.tiny import edit_json

TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
ENCODER = "text_encoder_2/model.safetensors"
Tensors = dict[str, torch.Tensor]


@pytest.fixture
def folder(tiny_teacher: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_teacher, tmp_path / "teacher"))


def model_of(folder: Path) -> ModelParams:
    return preset("world", {"model": {"teacher": str(folder)}}).model


def edit_tensors(path: Path, change: Callable[[Tensors], Any]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize("text_only", [True, False])
@pytest.mark.parametrize(
    ("part", "entry", "says"),
    [
        (
            "transformer",
            ["payload", "X"],
            r"transformer: \[\"payload\", \"X\"\]; allowed: a class of diffusers or",
        ),
        ("transformer", ["models.shared.payload", "X"], r"allowed: a class of diffusers or of transformers"),
        ("transformer", ["diffusers", "FluxTransformer2DModel"], r"Pipeline allows SD3Transformer2DModel$"),
        ("text_encoder", ["transformers", "T5EncoderModel"], r"allows CLIPTextModelWithProjection$"),
        ("tokenizer", ["transformers", "AutoTokenizer"], r"allows CLIPTokenizer$"),
        ("helper", ["diffusers", "AutoencoderKL"], r"StableDiffusion3Pipeline allows no part helper$"),
        ("vae", ["diffusers"], r"has vae: \[\"diffusers\"\]; allowed"),
    ],
)
def test_names_of_a_folder_are_never_imported(
    text_only: bool, part: str, entry: list[str], says: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "payload.py").write_text("raise SystemExit('it ran')\n")
    monkeypatch.syspath_prepend(str(folder))
    edit_json(folder / "model_index.json", **{part: entry})
    with pytest.raises(UserError, match=says):
        load_backbone(model_of(folder), text=text_only, vae=not text_only, bases="none" if text_only else "both")
    assert "payload" not in sys.modules


def test_a_tokenizers_faster_form_is_the_same_class(folder: Path) -> None:
    edit_json(folder / "model_index.json", tokenizer=["transformers", "CLIPTokenizerFast"])
    assert load_backbone(model_of(folder), text=True).encode(["a red circle"]).tensors["pooled_projections"].shape == (
        1,
        20,
    )


@pytest.mark.parametrize(
    ("file", "name"),
    [
        (TRANSFORMER, "transformer_blocks.1.attn.to_q.weight"),
        (VAE, "decoder.conv_in.bias"),
        (ENCODER, "text_projection.weight"),
    ],
)
def test_every_tensor_of_every_part_is_used(file: str, name: str, folder: Path) -> None:
    part = file.split("/")[0]
    whole = (folder / file).read_bytes()
    changes: dict[str, Callable[[Tensors], Any]] = {
        rf"missing: {name}; it lies outside": lambda tensors: tensors.pop(name),
        r"unexpected: extra\.weight; it lies": lambda tensors: tensors.update({"extra.weight": torch.zeros(1)}),
        rf"of another shape: {name};": lambda tensors: tensors.update({name: tensors[name][:-1].clone()}),
        rf"has {name} as I32; allowed": lambda tensors: tensors.update({name: tensors[name].int()}),
    }
    for says, change in changes.items():
        (folder / file).write_bytes(whole)
        edit_tensors(folder / file, change)
        with pytest.raises(UserError, match=f"model.teacher: (the weights in )?{folder / part}.* {says}"):
            load_backbone(model_of(folder), text=True)


def test_what_a_later_stage_needs_is_known_from_the_headers(folder: Path) -> None:
    check_base(StableDiffusion3Pipeline, folder, "sd3", "model.teacher")
    for file in (TRANSFORMER, VAE):
        whole = (folder / file).read_bytes()
        edit_tensors(folder / file, lambda tensors: tensors.pop(sorted(tensors)[0]))
        with pytest.raises(
            UserError, match=rf"the weights in {(folder / file).parent} are not this model's; missing: "
        ):
            check_base(StableDiffusion3Pipeline, folder, "sd3", "model.teacher")
        (folder / file).unlink()
        with pytest.raises(UserError, match=f"{folder / file} is missing; it lies outside this repository"):
            check_base(StableDiffusion3Pipeline, folder, "sd3", "model.teacher")
        (folder / file).write_bytes(whole)


@pytest.mark.parametrize(
    ("name", "entries", "says"),
    [
        ("adapter_config.json", {"peft_type": "LORA"}, r"would load an adapter of another model; merge it, or remove"),
        (
            "config.json",
            {"transformers_weights": "x.safetensors"},
            r"transformers_weights is not allowed; name the file",
        ),
    ],
)
def test_what_would_have_another_file_read_is_told_with_advice_that_works(
    tiny_teacher: Path, tmp_path: Path, name: str, entries: dict[str, str], says: str
) -> None:
    """A base outside this repository: to copy it again would bring the same file."""
    shutil.copytree(tiny_teacher, tmp_path / "base")
    path = tmp_path / "base/text_encoder" / name
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | entries))
    model = preset("smoke", {"model": {"teacher": str(tmp_path / "base")}}).model
    with pytest.raises(UserError, match=rf"^model\.teacher: .*{says}") as refused:
        load_backbone(model, text=True)
    assert "copy" not in str(refused.value)
