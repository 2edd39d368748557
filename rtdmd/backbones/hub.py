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
    return _snapshot(model, [*weights, *sharded])  # last: where all weights are, all else is


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
        return Path(snapshot_download(model.teacher, revision=model.revision, allow_patterns=list(patterns)))
