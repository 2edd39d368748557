"""The text cache: rows by prompt, and a stale or foreign cache named by its first difference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rtdmd.backbones import Conditioning
from rtdmd.errors import UserError
from rtdmd.files import sha256_file, write_json
from rtdmd.textcache import TextCache, cache_key, first_difference, write_cache

PROMPTS = ["", "a dog", "a cat"]
KEY: dict[str, Any] = {
    "format": 1,
    "encoders": {"files": {"a": "00", "b": "11"}},
    "prompt_files": {"train": "aa", "eval": "bb"},
}


def made(folder: Path) -> tuple[Path, Path]:
    embeddings, index = folder / "embeddings.safetensors", folder / "index.json"
    cond = Conditioning({"hidden": torch.arange(12.0).view(3, 2, 2), "pooled": torch.arange(6.0).view(3, 2)})
    write_cache(embeddings, index, PROMPTS, cond, KEY)
    return embeddings, index


def test_rows_are_found_by_prompt(tmp_path: Path) -> None:
    cache = TextCache.open(*made(tmp_path), KEY)
    assert cache.rows(["a cat", "", "a cat"]).tolist() == [2, 0, 2]
    assert cache.of(["a cat", "a dog"]).tensors["pooled"].tolist() == [[4.0, 5.0], [2.0, 3.0]]
    assert cache.conditioning(cache.rows(["a dog"])).tensors["hidden"].tolist() == [[[4.0, 5.0], [6.0, 7.0]]]
    assert cache.null().tensors["pooled"].tolist() == [[0.0, 1.0]]
    assert len(cache.to("cpu").cond) == 3
    with pytest.raises(UserError, match=r"the prompt 'a cow' is not in the text cache; run `rtdmd cache_teacher`"):
        cache.rows(["a dog", "a cow"])


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


def test_the_null_prompt_comes_first(tmp_path: Path) -> None:
    cond = Conditioning({"pooled": torch.zeros(1, 2)})
    with pytest.raises(ValueError, match="null prompt first"):
        write_cache(tmp_path / "e", tmp_path / "i", ["a dog"], cond, KEY)


def test_the_key_follows_params_and_files(tiny_teacher: Path, tmp_path: Path) -> None:
    from rtdmd.config import preset

    write_json(tmp_path / "train.jsonl", {})
    model = preset("world", {"model": {"teacher": str(tiny_teacher)}}).model
    key = cache_key(model, {"train": tmp_path / "train.jsonl"})
    assert key["prompt_files"] == {"train": sha256_file(tmp_path / "train.jsonl")}
    assert (key["family"], key["dtype"], key["max_sequence_length"]) == ("sd3", "float32", 1)
    longer = preset("world", {"model": {"teacher": str(tiny_teacher), "max_sequence_length": 4}}).model
    difference = first_difference(key, cache_key(longer, {"train": tmp_path / "train.jsonl"}))
    assert difference == "max_sequence_length is 4 now, and was 1 when it was made"
