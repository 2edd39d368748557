"""What the plan, and `rtdmd params check`, say of a local teacher that is not whole."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from rtdmd.cli import main
from rtdmd.common.errors import UserError
from rtdmd.config import ModelParams, preset
from rtdmd.config.render import params_text
from rtdmd.plan.models import part_configs
from tests.tiny import edit_json


@pytest.fixture
def folder(tiny_teacher: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_teacher, tmp_path / "teacher"))


def model_of(folder: Path) -> ModelParams:
    return preset("world", {"model": {"teacher": str(folder)}}).model


def test_a_text_encoder_that_is_missing_is_not_counted_as_nothing(folder: Path) -> None:
    assert set(part_configs(model_of(folder))) == {"transformer", "vae", "text_encoder", "text_encoder_2"}
    (folder / "text_encoder_2/config.json").unlink()
    with pytest.raises(UserError, match=rf"{folder} has no text_encoder_2/config\.json; it lies outside this"):
        part_configs(model_of(folder))


@pytest.mark.parametrize(
    ("part", "key", "value", "says"),
    [
        ("transformer", "_class_name", "FluxTransformer2DModel", "of a FluxTransformer2DModel; sd3 allows SD3Transf"),
        ("text_encoder", "architectures", ["T5EncoderModel"], "of a T5EncoderModel; sd3 allows CLIPTextModelWithPr"),
        ("vae", "_class_name", None, "is of a None; sd3 allows AutoencoderKL$"),
    ],
)
def test_classes_are_the_familys(folder: Path, part: str, key: str, value: object, says: str) -> None:
    edit_json(folder / part / "config.json", **{key: value})
    with pytest.raises(UserError, match=says):
        part_configs(model_of(folder))


@pytest.mark.parametrize("command", [["params", "check"], ["plan"]])
def test_commands_that_read_no_weights_say_that_they_are_missing(
    command: list[str],
    folder: Path,
    tiny_clip: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    clip = {"name": "clipscore", "model": str(tiny_clip)}
    changes = {
        "model": {"teacher": str(folder)},
        "train_rtdmd": {"rewards": [clip]},
        "evaluate": {"rewards": [clip], "features_model": str(tiny_clip)},
    }
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(params_text(preset("smoke", changes), "a test"))
    assert main(["params", "check"]) == 0
    weights = folder / "transformer/diffusion_pytorch_model.safetensors"
    weights.unlink()
    assert main(command) == 2
    assert f"model.teacher: {weights} is missing; it lies outside this repository" in capsys.readouterr().err
