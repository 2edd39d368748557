"""A fuzzer of teacher folders: whatever is damaged, loading gives the same model or one line that names the place.

FUZZ_ROUNDS=2000 FUZZ_SEED=1 pytest -n0 tests/backbones/test_damaged_folders.py
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rtdmd.backbones import PipelineBackbone, load_backbone, require_whole
from rtdmd.common.errors import UserError
from rtdmd.config import preset
from tests.fuzz import dice, rounds

Damage = Callable[[Path, random.Random], None]
BAD_TEXTS = ("", "[]", "null", "{", '{"a": 1e999}', "\ufeff{}", "[" * 5000, "NaN", '"text"', "{}")
FOREIGN = (
    ["os", "system"],
    ["diffusers", "DiffusionPipeline"],
    ["transformers", "pipeline"],
    ["torch.nn", "Linear"],
    7,
)


def remove(path: Path, _: random.Random) -> None:
    path.unlink()


def empty(path: Path, _: random.Random) -> None:
    path.write_bytes(b"")


def cut(path: Path, draw: random.Random) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: draw.randrange(len(data))])


def lengthen(path: Path, draw: random.Random) -> None:
    path.write_bytes(path.read_bytes() + bytes(draw.randrange(1, 99)))


def rename(path: Path, _: random.Random) -> None:
    path.rename(path.with_name(f"old-{path.name}"))


def folder_instead(path: Path, _: random.Random) -> None:
    path.unlink()
    path.mkdir()


def header(path: Path, draw: random.Random) -> None:
    """One changed byte among the first hundred: the header's length or its names."""
    data = bytearray(path.read_bytes())
    data[draw.randrange(min(100, len(data)))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


def bad_text(path: Path, draw: random.Random) -> None:
    path.write_text(draw.choice(BAD_TEXTS))


def tensors_of(path: Path, draw: random.Random) -> tuple[dict[str, torch.Tensor], str]:
    tensors = load_file(path)
    return tensors, draw.choice(sorted(tensors))


def lose(path: Path, draw: random.Random) -> None:
    tensors, name = tensors_of(path, draw)
    save_file({key: value for key, value in tensors.items() if key != name}, path, metadata={"format": "pt"})


def change_tensor(path: Path, draw: random.Random, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    tensors, name = tensors_of(path, draw)
    save_file(tensors | {name: change(tensors[name]).contiguous()}, path, metadata={"format": "pt"})


def narrow(path: Path, draw: random.Random) -> None:
    change_tensor(path, draw, lambda tensor: torch.zeros([side + 1 for side in tensor.shape]))


def flatten(path: Path, draw: random.Random) -> None:
    change_tensor(path, draw, lambda tensor: tensor.flatten()[None, None, :])


def whole_numbers(path: Path, draw: random.Random) -> None:
    kinds = (torch.int8, torch.int64, torch.bool, torch.uint8)
    change_tensor(path, draw, lambda tensor: tensor.to(draw.choice(kinds)))


def extra(path: Path, draw: random.Random) -> None:
    tensors, name = tensors_of(path, draw)
    save_file(tensors | {f"{name}.more": torch.zeros(2)}, path, metadata={"format": "pt"})


def foreign_class(path: Path, draw: random.Random) -> None:
    index = path.parents[1] / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {path.parent.name: draw.choice(FOREIGN)}))


def lone_index(path: Path, draw: random.Random) -> None:
    """Weights told by an index that names a file elsewhere or nowhere."""
    name = draw.choice(("../x.safetensors", "none.safetensors", "/etc/hosts", "config.json"))
    path.with_name(f"{path.name}.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    path.unlink()


TEXT_DAMAGES: tuple[Damage, ...] = (remove, empty, cut, rename, folder_instead, bad_text)
WEIGHT_DAMAGES: tuple[Damage, ...] = (
    *(remove, empty, cut, lengthen, rename, folder_instead, header, lose, narrow, flatten, whole_numbers, extra),
    *(foreign_class, lone_index),
)


def outcome(folder: Path) -> tuple[PipelineBackbone, dict[str, Any]]:
    """What cache_teacher and the stages after it do with a folder: looked through, loaded, asked."""
    model = preset("world", {"model": {"teacher": str(folder)}}).model
    require_whole(model)
    backbone = load_backbone(model, text=True)
    cond = backbone.encode(["a photo of a red circle"]).tensors
    vae = backbone.pipeline.vae.state_dict()
    return backbone, {**cond, **backbone.transformer.state_dict(), **{f"vae.{name}": vae[name] for name in vae}}


def test_a_damaged_folder_is_the_same_model_or_one_line(tiny_teacher: Path, tmp_path: Path) -> None:
    """Rounds: 16 in the suite. A file that is cut in its trailing blanks, say, is the same model."""
    draw = dice("damaged teacher folders")
    _, expected = outcome(tiny_teacher)
    files = sorted(path.relative_to(tiny_teacher) for path in tiny_teacher.rglob("*") if path.is_file())
    refused = 0
    for turn in range(rounds(16)):
        folder = Path(shutil.copytree(tiny_teacher, tmp_path / str(turn)))
        weights = [file for file in files if file.suffix == ".safetensors"]
        texts = [file for file in files if file.suffix != ".safetensors"]
        file = draw.choice(weights if draw.random() < 0.6 else texts)
        damage = draw.choice(WEIGHT_DAMAGES if file in weights else TEXT_DAMAGES)
        damage(folder / file, draw)
        what = f"{damage.__name__} {file}"
        try:
            _, found = outcome(folder)
        except UserError as error:
            refused += 1
            assert "\n" not in str(error) and str(error).startswith("model."), what
            assert str(folder) in str(error), what
        else:
            assert found.keys() == expected.keys(), what
            assert all(torch.equal(found[name], expected[name]) for name in expected), what
        shutil.rmtree(folder)
    assert refused > rounds(16) // 2


@pytest.mark.parametrize("damage", WEIGHT_DAMAGES, ids=lambda damage: damage.__name__)
def test_every_damage_of_weights_is_refused(damage: Damage, tiny_teacher: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_teacher, tmp_path / "teacher"))
    damage(folder / "text_encoder/model.safetensors", dice(damage.__name__))
    with pytest.raises(UserError, match=r"^model\.teacher: .*text_encoder"):
        outcome(folder)
