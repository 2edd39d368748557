"""Teachers and students' bases of the Hub on this machine: what is read of a repository, at its pinned commit, and
nothing else of it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from rtdmd.common.errors import UserError
from rtdmd.common.hub import fetching
from rtdmd.common.model_files import INDEX, TEXTS, model_index, parts_of, shards, single_weights, teacher_files

if TYPE_CHECKING:
    from rtdmd.config.model import ModelParams

VARIANT_INDEXES = ["*.index.*.json", "*.*.safetensors.index.json"]
"""Indexes of other copies of the same weights, an fp16 variant's say."""


def fetch_base(model: ModelParams, *, text: bool, vae: bool) -> Path:
    """The folder of ``model.teacher``, a Hub id, downloaded as far as it is not here: its index, the small files of the
    parts that are asked for, then the weights that their indexes name. UserError as in `fetching`."""
    here = cached_folder(model.teacher, model.revision)
    if here is not None and _complete(here, model.key, text, vae):
        return here
    folder = _snapshot(model, [INDEX])
    wanted = _wanted(folder, model.key, text, vae)
    texts = [f"{part}/{pattern}" for part in wanted for pattern in TEXTS]
    folder = _snapshot(model, [INDEX, *texts, "vae/config.json"])
    weights = [f"{part}/{name}" for part, entry in wanted.items() for name in single_weights(*entry)]
    indexes = [folder / f"{name}.index.json" for name in weights]
    sharded = [f"{i.parent.name}/{name}" for i in indexes if i.is_file() for name in shards(i, model.key, False)]
    folder = _snapshot(model, [*weights, *sharded])  # last: where all weights are, all else is
    _require_all(model, folder, weights, sharded)
    return folder


def _require_all(model: ModelParams, folder: Path, weights: Iterable[str], sharded: Iterable[str]) -> None:
    """UserError that names the first file of weights that the repository itself lacks at its commit: no download brings
    it."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    alone = [name for name in weights if not (folder / f"{name}.index.json").is_file()]
    for name in (*alone, *sharded):
        if (folder / name).is_file():
            continue
        with fetching(model.key, model.pin, model.teacher, model.revision, then="rtdmd cache_teacher"):
            try:
                hf_hub_download(model.teacher, name, revision=model.revision)
            except LocalEntryNotFoundError:  # the Hub cannot be reached
                raise
            except EntryNotFoundError as error:
                raise UserError(
                    f"{model.key}: {model.teacher} has no {name} at {model.revision}, and its own files name it; set"
                    f" {model.pin} to a commit that has it: https://huggingface.co/{model.teacher}/commits"
                ) from error


def _wanted(folder: Path, key: str, text: bool, vae: bool) -> dict[str, tuple[str, str]]:
    """(library, class) by part, of the parts that are asked for."""
    parts = parts_of(model_index(folder, key), folder, key)
    left_out: tuple[str, ...] = () if text else ("text_encoder", "tokenizer")
    return {part: entry for part, entry in parts.items() if not part.startswith(left_out) and (vae or part != "vae")}


def _complete(folder: Path, key: str, text: bool, vae: bool) -> bool:
    try:
        teacher_files(folder, key, only=_wanted(folder, key, text, vae))
    except UserError:  # a file is not here yet: it is downloaded
        return False
    return (folder / "vae/config.json").is_file()


def cached_folder(repository: str, revision: str | None) -> Path | None:
    """The commit's folder in the Hub's cache on this machine, None where its index is not there."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository, INDEX, revision=revision)
    return Path(found).parent if isinstance(found, str) else None


def _snapshot(model: ModelParams, patterns: Iterable[str]) -> Path:
    from huggingface_hub import snapshot_download

    with fetching(model.key, model.pin, model.teacher, model.revision, then="rtdmd cache_teacher"):
        folder = snapshot_download(
            model.teacher, revision=model.revision, allow_patterns=list(patterns), ignore_patterns=VARIANT_INDEXES
        )
    return Path(folder)
