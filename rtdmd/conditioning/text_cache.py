"""The text cache: the teacher's conditioning of every prompt and of the null prompt, made by cache_teacher.

Training and evaluation read it, memory-mapped, and load no text encoder; with ``cache_teacher.mode: on_the_fly`` it
holds the null prompt alone and they encode each batch instead. Row 0 is the null prompt "". The index says what the
rows were computed from; a cache that does not fit the present params or files is an error that names the difference.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rtdmd.backbones import load_backbone
from rtdmd.backbones.protocol import Conditioning
from rtdmd.backbones.snapshot import text_identity
from rtdmd.common.errors import UserError
from rtdmd.common.files import read_json, sha256_file, write_json
from rtdmd.conditioning.text_store import Encode, EncodedRows, Layout, StoredRows

if TYPE_CHECKING:
    from rtdmd.config import ModelParams
    from rtdmd.config.data import CacheTeacherParams
    from rtdmd.pipeline.stage import Stage

NULL_PROMPT = ""
FORMAT = 2
FOLDER = "results/cache_teacher"
PROMPT_FOLDER = "results/prepare_prompts"
_CONTENT = ("layout", "files", "rows")  # of the index: what the cache holds; all else is what it was made from


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


def storage_key(params: CacheTeacherParams) -> dict[str, Any]:
    """How a cache is stored: what of its section decides over its numbers."""
    return {"mode": params.mode, "storage_dtype": params.storage_dtype, "unpadded": params.unpadded}


def write_index(
    index: Path, prompts: Sequence[str], files: Mapping[Path, tuple[int, int]], layout: Layout, key: Mapping[str, Any]
) -> None:
    """Write the index of a cache of ``prompts`` (the null prompt first); ``files``: the rows [first, last) of each."""
    if not prompts or prompts[0] != NULL_PROMPT or len(set(prompts)) != len(prompts):
        raise ValueError("a text cache has one row for each prompt, the null prompt first")
    held = {path.name: {"rows": list(span), "sha256": sha256_file(path)} for path, span in files.items()}
    rows = {prompt: row for row, prompt in enumerate(prompts)}
    write_json(index, {**key, "layout": asdict(layout), "files": held, "rows": rows})


@dataclass(frozen=True)
class TextCache:
    """An open cache: conditioning rows by prompt, handed out on ``device`` (None: where they are)."""

    cond: StoredRows | EncodedRows | Conditioning
    row_of: dict[str, int]
    device: torch.device | str | None = None

    @staticmethod
    def open(
        embeddings: Path, index: Path, expect: Mapping[str, Any], encode: Encode | None = None, batch_size: int = 64
    ) -> TextCache:
        """Read a cache and compare its index with ``expect`` (see `cache_key`; prompt files not named there are not
        compared). UserError that names the first difference.

        The files that the index names lie beside ``embeddings``. encode: gives the prompts that are not stored,
        ``batch_size`` at a time.
        """
        found = read_json(index)
        _check(index, found, expect)
        layout = Layout.parse(found["layout"])
        row_of = found["rows"]
        files = sorted(found["files"], key=lambda name: found["files"][name]["rows"])
        stored = StoredRows([embeddings.parent / name for name in files], layout)
        if len(stored) == len(row_of):
            return TextCache(stored, row_of)
        if encode is None:
            raise ValueError(f"{index}: {len(row_of) - len(stored)} prompts are not stored and need text encoders")
        prompts = sorted(row_of, key=row_of.__getitem__)
        return TextCache(EncodedRows(stored, prompts, encode, batch_size), row_of)

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
        return self.cond.index(rows).to(self.device)

    def of(self, prompts: Iterable[str]) -> Conditioning:
        """Conditioning of prompts."""
        return self.conditioning(self.rows(prompts))

    def null(self) -> Conditioning:
        """Conditioning of the null prompt, one row."""
        return self.conditioning([0])

    def to(self, device: torch.device | str) -> TextCache:
        """The same cache, whose rows are handed out on another device; the cache itself stays where it is."""
        return TextCache(self.cond, self.row_of, device)


def open_text_cache(stage: Stage, *splits: str) -> TextCache:
    """The cache, a declared input, checked against the params and the prompt files of ``splits`` (train, eval).

    UserError where it does not fit them, or where an embeddings file is not the one that the index was written with.
    The text encoders are loaded in mode on_the_fly alone.
    """
    params = stage.params
    files = {split: stage.input(f"{PROMPT_FOLDER}/{split}.jsonl") for split in splits}
    expect = cache_key(params.model, files, stage.root) | {"cache_teacher": storage_key(params.cache_teacher)}
    index = stage.input(f"{FOLDER}/index.json")
    found = read_json(index)
    _check(index, found, expect)
    for name, about in found["files"].items():
        path = f"{FOLDER}/{name}"
        stage.input(path)
        if stage.inputs[path] != about["sha256"]:
            raise UserError(f"{path} is not the file that {index} was written with; run `rtdmd cache_teacher`")
    live = params.cache_teacher.mode == "on_the_fly"
    encode = text_encoder(params.model, params.run.device, stage.root) if live else None
    embeddings = stage.input(f"{FOLDER}/{next(iter(found['files']))}")
    return TextCache.open(embeddings, index, expect, encode, params.cache_teacher.batch_size)


def text_encoder(model: ModelParams, device: torch.device | str, root: Path) -> Encode:
    """The teacher's text encoders, and nothing else of it, as a function from prompts to conditioning."""
    encode = load_backbone(model, text=True, vae=False, bases="none", device=device, root=root).encode
    for handler in logging.getLogger("diffusers").handlers:  # which it has since its pipeline was loaded
        handler.addFilter(CUT_ONCE)
    return encode


class CutOnce(logging.Filter):
    """Of long prompts diffusers prints all that an encoder cuts off, padding too, for every batch: several screens.
    That prompts are cut is said once, in one line."""

    told = False

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the message is shown; the first one about a cut becomes the line."""
        if not record.getMessage().startswith("The following part of your input was truncated"):
            return True
        record.msg = (
            "cache_teacher: some prompts are longer than a text encoder reads (CLIP: 77 tokens, the others:"
            " model.max_sequence_length); what is beyond is cut, as diffusers does it"
        )
        record.args = ()
        first = not self.told
        self.told = True
        return first


CUT_ONCE = CutOnce()


def _check(index: Path, found: Mapping[str, Any], expect: Mapping[str, Any]) -> None:
    """UserError that names the first difference between what a cache was made from and ``expect``."""
    made_from = {key: value for key, value in found.items() if key not in _CONTENT}
    if "cache_teacher" not in expect:
        made_from.pop("cache_teacher", None)
    read = expect["prompt_files"]
    made_from["prompt_files"] = {split: digest for split, digest in found["prompt_files"].items() if split in read}
    difference = first_difference(made_from, expect)
    if difference is not None:
        raise UserError(f"the text cache {index} does not fit: {difference}; run `rtdmd cache_teacher`")


def first_difference(found: Mapping[str, Any], expect: Mapping[str, Any], prefix: str = "") -> str | None:
    """The first key (by name, nested) whose value differs between the cache and what is now, in words, or None."""
    for key in sorted({*found, *expect}):
        then = found.get(key, "absent")
        now = expect.get(key, "absent")
        name = f"{prefix}{key}"
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
