"""Which files a scorer is read from, what they are called by, and what is said where they are not as they should be."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rtdmd.common import digests
from rtdmd.common.errors import UserError
from rtdmd.common.files import load_tensors, save_tensors, sha256_file
from rtdmd.config import reward_params
from rtdmd.rewards.protocol import Reward
from rtdmd.rewards.registry import load_reward
from rtdmd.rewards.weights import file_hashes
from tests.rewards.reward_checks import NONE, PROMPTS, pictures
from tests.rewards.tiny_scorers import entry


def clipscore(folder: Path) -> Reward:
    return load_reward(reward_params(name="clipscore", model=str(folder)))


def as_bin(folder: Path) -> set[str]:
    torch.save(load_tensors(folder / "model.safetensors")[0], folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return {"pytorch_model.bin"}


def as_shards(folder: Path) -> set[str]:
    tensors, _ = load_tensors(folder / "model.safetensors")
    names, files = sorted(tensors), ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    table = {name: files[number % 2] for number, name in enumerate(names)}
    for file in files:
        save_tensors({name: tensors[name] for name in names if table[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
    (folder / "model.safetensors").unlink()
    return {*files, "model.safetensors.index.json"}


@pytest.mark.parametrize("layout", [as_bin, as_shards])
def test_weights_in_another_layout_are_read_and_named(
    layout: Callable[[Path], set[str]], tiny_clip: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_clip, tmp_path / "clip"))
    expected = clipscore(folder).score(pictures(), PROMPTS, NONE)
    files = layout(folder)
    reward = clipscore(folder)
    assert (reward.score(pictures(), PROMPTS, NONE) - expected).abs().max() < 1e-6  # memory lies otherwise
    named = reward.identity()["files"]
    assert {name for name in named if "model" in name} == files
    assert all(named[name] == sha256_file(folder / name) for name in files)


def test_a_file_of_the_hubs_cache_is_called_by_its_own_name(tmp_path: Path) -> None:
    """Weights lie there under their sha256, small files under Git's hash: these are read."""
    blobs, names = tmp_path / "blobs", tmp_path / "snapshots" / "a"
    blobs.mkdir()
    names.mkdir(parents=True)
    for name, blob in (("model.safetensors", "ab" * 32), ("config.json", "cd" * 20)):
        (blobs / blob).write_text(name)
        (names / name).symlink_to(blobs / blob)
    config = sha256_file(names / "config.json")
    assert file_hashes(names.iterdir()) == {"model.safetensors": "ab" * 32, "config.json": config}


def test_a_large_file_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the run's inputs and by every loading after it."""
    path, read = tmp_path / "model.safetensors", []
    path.write_bytes(b"weights")
    real = digests.file_digest
    monkeypatch.setattr(digests, "LARGE", 1)
    monkeypatch.setattr(digests, "TIME_STEP", 0)
    monkeypatch.setattr(digests, "file_digest", lambda one, kind: read.append(one) or real(one, kind))
    found = {digests.cached_digest(path, tmp_path)}
    found |= {file_hashes([path], root=tmp_path)[path.name] for _ in range(3)}
    assert found == {sha256_file(path)} and read == [path]


@pytest.mark.parametrize(
    ("name", "source", "file", "content", "what"),
    [
        ("clipscore", "model", "config.json", {"model_type": "clip", "text_config": 3}, "CLIP configuration"),
        ("clipscore", "model", "tokenizer.json", {"model": 3}, "tokenizer"),
        ("clipscore", "model", "preprocessor_config.json", {"do_resize": True}, "image processor"),
        ("aesthetic", "base", "config.json", {"model_type": "clip", "vision_config": "x"}, "CLIP configuration"),
        ("geneval", "colour_model", "preprocessor_config.json", {"image_mean": 3}, "image processor"),
        ("hpsv3", "base", "config.json", {"model_type": "qwen2_vl", "text_config": 3}, "Qwen2-VL"),
        ("geneval2", "model", "preprocessor_config.json", {"size": "large"}, "image processor"),
        ("imagereward", "model", "med_config.json", None, "text model"),
    ],
)
def test_a_configuration_that_makes_nothing_is_one_line_with_its_setting(
    name: str, source: str, file: str, content: object, what: str, tmp_path: Path
) -> None:
    params = entry(name, tmp_path)
    path = Path(getattr(params, source)) / file
    if content is None:
        content = json.loads(path.read_text()) | {"hidden_size": "wide"}
    path.write_text(json.dumps(content))
    with pytest.raises(UserError) as refused:
        load_reward(params)
    said = str(refused.value)
    assert said.startswith(f"rewards: {name}: {source}: {path} makes no {what} (") and "\n" not in said, said
    assert said.endswith("copy or download it there again, from where the folder came")
