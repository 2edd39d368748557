"""The text cache: the teacher's conditioning of every prompt and of the null prompt, computed once by cache_teacher.

Training and evaluation read it and never load a text encoder. Row 0 is the null prompt "". The index says what the rows
were computed from; a cache that does not fit the present params or prompt files is an error that names the difference.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rtdmd.backbones.protocol import Conditioning
from rtdmd.backbones.snapshot import text_identity
from rtdmd.errors import UserError
from rtdmd.files import load_tensors, read_json, save_tensors, sha256_file, write_json

if TYPE_CHECKING:
    from rtdmd.config import ModelParams
    from rtdmd.stage import Stage

NULL_PROMPT = ""
FORMAT = 1
FOLDER = "results/cache_teacher"
PROMPT_FOLDER = "results/prepare_prompts"


def cache_key(model: ModelParams, prompt_files: Mapping[str, Path], root: Path = Path(".")) -> dict[str, Any]:
    """What a cache is computed from: teacher and text files, length, dtype, and the sha256 of prompt files by split."""
    return {
        "format": FORMAT,
        "family": model.family,
        "encoders": text_identity(model, root),
        "max_sequence_length": model.max_sequence_length,
        "dtype": model.dtype,
        "prompt_files": {split: sha256_file(path) for split, path in sorted(prompt_files.items())},
    }


def write_cache(
    embeddings: Path, index: Path, prompts: Sequence[str], cond: Conditioning, key: Mapping[str, Any]
) -> None:
    """Write the rows ``cond`` of ``prompts`` (the null prompt first) and their index."""
    if not prompts or prompts[0] != NULL_PROMPT or len(prompts) != len(cond):
        raise ValueError("a text cache has one row for each prompt, the null prompt first")
    save_tensors(cond.tensors, embeddings)
    write_json(index, {**key, "rows": {prompt: row for row, prompt in enumerate(prompts)}})


@dataclass(frozen=True)
class TextCache:
    """An open cache: conditioning rows by prompt."""

    cond: Conditioning
    row_of: dict[str, int]

    @staticmethod
    def open(embeddings: Path, index: Path, expect: Mapping[str, Any]) -> TextCache:
        """Read a cache and compare its index with ``expect`` (see `cache_key`; prompt files not named there are not
        compared). UserError that names the first difference."""
        found = read_json(index)
        rows = found.pop("rows")
        read = expect["prompt_files"]
        found["prompt_files"] = {split: digest for split, digest in found["prompt_files"].items() if split in read}
        difference = first_difference(found, expect)
        if difference is not None:
            raise UserError(f"the text cache {index} does not fit: {difference}; run `rtdmd cache_teacher`")
        tensors, _ = load_tensors(embeddings)
        return TextCache(Conditioning(tensors), rows)

    def rows(self, prompts: Iterable[str]) -> Tensor:
        """Row numbers (B,) of prompts; UserError for a prompt that is not in the cache."""
        try:
            return torch.tensor([self.row_of[prompt] for prompt in prompts], dtype=torch.long)
        except KeyError as error:
            raise UserError(
                f"the prompt {error.args[0]!r} is not in the text cache; run `rtdmd cache_teacher`"
            ) from error

    def conditioning(self, rows: Tensor | Sequence[int]) -> Conditioning:
        """Conditioning of the rows."""
        return self.cond.index(rows)

    def of(self, prompts: Iterable[str]) -> Conditioning:
        """Conditioning of prompts."""
        return self.cond.index(self.rows(prompts))

    def null(self) -> Conditioning:
        """Conditioning of the null prompt, one row."""
        return self.cond.index([0])

    def to(self, device: torch.device | str) -> TextCache:
        """The same cache on another device."""
        return TextCache(self.cond.to(device), self.row_of)


def open_text_cache(stage: Stage, *splits: str) -> TextCache:
    """The cache, a declared input, checked against the params and the prompt files of ``splits`` (train, eval)."""
    files = {split: stage.input(f"{PROMPT_FOLDER}/{split}.jsonl") for split in splits}
    expect = cache_key(stage.params.model, files, stage.root)
    return TextCache.open(stage.input(f"{FOLDER}/embeddings.safetensors"), stage.input(f"{FOLDER}/index.json"), expect)


def first_difference(found: Mapping[str, Any], expect: Mapping[str, Any], prefix: str = "") -> str | None:
    """The first key (by name, nested) whose value differs between the cache and what is now, in words, or None."""
    for key in sorted({*found, *expect}):
        then, now, name = found.get(key, "absent"), expect.get(key, "absent"), f"{prefix}{key}"
        if isinstance(then, Mapping) and isinstance(now, Mapping):
            inner = first_difference(then, now, f"{name}.")
            if inner is not None:
                return inner
        elif then != now:
            return f"{name} is {_short(now)} now, and was {_short(then)} when it was made"
    return None


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:16]}..."
