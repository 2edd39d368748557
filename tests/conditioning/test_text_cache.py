"""The text cache: rows by prompt, and a stale or foreign cache named by its first difference."""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from rtdmd.backbones import Conditioning
from rtdmd.common.errors import UserError
from rtdmd.common.files import read_json, sha256_file, write_json
from rtdmd.conditioning import text_cache
from rtdmd.conditioning.text_cache import TextCache, cache_key, first_difference, text_encoder, write_index
from rtdmd.conditioning.text_store import Layout, RowWriter
from rtdmd.config.presets import preset
from tests.workspace import REPOSITORY

PROMPTS = ["", "a dog", "a cat"]
COND = Conditioning({"hidden": torch.arange(12.0).view(3, 2, 2), "pooled": torch.arange(6.0).view(3, 2)})
KEY: dict[str, Any] = {
    "format": 2,
    "encoders": {"files": {"a": "00", "b": "11"}},
    "prompt_files": {"train": "aa", "eval": "bb"},
}


def made(folder: Path, names: Sequence[str] = ("embeddings.safetensors",), rows: int = 3) -> tuple[Path, Path]:
    """A cache of PROMPTS whose first ``rows`` are stored, in files of these names."""
    (folder / "work").mkdir()
    writer = RowWriter(folder / "work", names, rows, Layout.of(COND, "float32", unpadded=False))
    writer.begin()
    writer.write(COND.index(slice(0, rows)))
    paths = [folder / name for name in names]
    writer.move(paths)
    write_index(folder / "index.json", PROMPTS, dict(zip(paths, writer.spans(), strict=True)), writer.layout, KEY)
    return paths[0], folder / "index.json"


@pytest.mark.parametrize(
    "names", [["embeddings.safetensors"], ["embeddings-9.safetensors", "embeddings-10.safetensors"]]
)
def test_rows_are_found_by_prompt(tmp_path: Path, names: list[str]) -> None:
    cache = TextCache.open(*made(tmp_path, names), KEY)
    assert cache.rows(["a cat", "", "a cat"]).tolist() == [2, 0, 2]
    assert cache.of(["a cat", "a dog"]).tensors["pooled"].tolist() == [[4.0, 5.0], [2.0, 3.0]]
    assert cache.conditioning(cache.rows(["a dog"])).tensors["hidden"].tolist() == [[[4.0, 5.0], [6.0, 7.0]]]
    assert cache.null().tensors["pooled"].tolist() == [[0.0, 1.0]]
    assert len(cache.to("cpu").cond) == 3
    with pytest.raises(UserError, match=r"the prompt 'a cow' is not in the text cache; run `rtdmd cache_teacher`"):
        cache.rows(["a dog", "a cow"])


def test_only_the_rows_asked_for_go_to_the_device(tmp_path: Path) -> None:
    cache = TextCache.open(*made(tmp_path), KEY).to("meta")
    assert {tensor.device.type for tensor in cache.of(["a dog"]).tensors.values()} == {"meta"}
    assert {tensor.device.type for tensor in cache.null().tensors.values()} == {"meta"}
    assert cache.cond.index([0]).tensors["pooled"].device.type == "cpu"


def test_what_is_not_stored_is_encoded_once_a_batch(tmp_path: Path) -> None:
    paths = made(tmp_path, rows=1)
    asked: list[list[str]] = []

    def encode(prompts: Sequence[str]) -> Conditioning:
        asked.append(list(prompts))
        return COND.index([PROMPTS.index(prompt) for prompt in prompts]).to(dtype=torch.float64)

    with pytest.raises(ValueError, match="2 prompts are not stored and need text encoders"):
        TextCache.open(*paths, KEY)
    cache = TextCache.open(*paths, KEY, encode, batch_size=2)
    assert torch.equal(cache.null().tensors["hidden"], COND.tensors["hidden"][:1]) and asked == []
    found = cache.of(["a cat", "a dog", "a cat", ""])
    for name, tensor in COND.index([2, 1, 2, 0]).tensors.items():
        assert torch.equal(found.tensors[name], tensor) and found.tensors[name].dtype == torch.float32
    assert asked == [["", "a dog"], ["a cat"]]


def test_a_stale_cache_is_an_error_that_names_the_difference(tmp_path: Path) -> None:
    paths = made(tmp_path)
    changed = {**KEY, "encoders": {"files": {"a": "00", "b": "22"}}}
    says = r"does not fit: encoders\.files\.b is 22 now, and was 11 when it was made; run `rtdmd cache_teacher`"
    with pytest.raises(UserError, match=says):
        TextCache.open(*paths, changed)
    with pytest.raises(UserError, match=r"dtype is bfloat16 now, and was absent when it was made"):
        TextCache.open(*paths, {**KEY, "dtype": "bfloat16"})
    only_train = {**KEY, "prompt_files": {"train": "aa"}}
    assert len(TextCache.open(*paths, only_train).row_of) == 3  # a stage compares the files it reads


def test_a_file_that_the_teacher_no_longer_has_is_a_difference() -> None:
    found = {"encoders": {"files": {"a": "00", "b": "11"}}}
    difference = first_difference(found, {"encoders": {"files": {"a": "00"}}})
    assert difference == "encoders.files.b is absent now, and was 11 when it was made"


@pytest.mark.parametrize("prompts", [[], ["a dog"], ["", "a dog", "a dog"]])
def test_the_null_prompt_comes_first_and_none_twice(tmp_path: Path, prompts: list[str]) -> None:
    with pytest.raises(ValueError, match="null prompt first"):
        write_index(tmp_path / "i", prompts, {}, Layout.of(COND, "float32", unpadded=False), KEY)
    assert not (tmp_path / "i").exists()


def test_the_index_names_files_rows_and_hashes(tmp_path: Path) -> None:
    embeddings, index = made(tmp_path)
    held = read_json(index)["files"]
    assert held == {"embeddings.safetensors": {"rows": [0, 3], "sha256": sha256_file(embeddings)}}


def test_the_key_follows_params_and_files(tiny_teacher: Path, tmp_path: Path) -> None:
    from rtdmd.config import preset

    write_json(tmp_path / "train.jsonl", {})
    model = preset("world", {"model": {"teacher": str(tiny_teacher)}}).model
    key = cache_key(model, {"train": tmp_path / "train.jsonl"})
    assert key["prompt_files"] == {"train": sha256_file(tmp_path / "train.jsonl")}
    assert (key["family"], key["dtype"], key["max_sequence_length"]) == ("sd3", "float32", 1)
    assert any(name.startswith("tokenizer") for name in key["encoders"]["files"])
    longer = preset("world", {"model": {"teacher": str(tiny_teacher), "max_sequence_length": 4}}).model
    difference = first_difference(key, cache_key(longer, {"train": tmp_path / "train.jsonl"}))
    assert difference == "max_sequence_length is 4 now, and was 1 when it was made"


def test_that_long_prompts_are_cut_is_one_line_however_many_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = logging.StreamHandler(io.StringIO())
    monkeypatch.setattr(text_cache.CUT_ONCE, "told", False)  # another test of this process may have been told
    monkeypatch.setattr(logging.getLogger("diffusers"), "handlers", [shown])
    encode = text_encoder(preset("world").model, "cpu", REPOSITORY)
    for _ in range(3):
        encode(["a photo of a red circle " * 40, "a photo of a red circle"])
    (line,) = shown.stream.getvalue().splitlines()
    assert line.startswith("cache_teacher: some prompts are longer than a text encoder reads (CLIP: 77 tokens")
    logging.getLogger("diffusers.pipelines").warning("another word")
    assert shown.stream.getvalue().splitlines()[1:] == ["another word"]
