"""Models of the Hub on this machine: what is read of a repository, at its pinned commit, and nothing else of it."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from rtdmd.common.errors import UserError
from rtdmd.common.hub import fetching
from rtdmd.common.model_files import (
    INDEX,
    SINGLE,
    TEXTS,
    model_index,
    parts_of,
    plain_texts,
    shards,
    single_weights,
    teacher_files,
    transformers_weights,
)

if TYPE_CHECKING:
    from rtdmd.config.model import ModelParams
    from rtdmd.rewards.registration import RewardParams

TRANSFORMERS_FILES = (*TEXTS, "*.safetensors")


def fetch_teacher(model: ModelParams, *, text: bool, vae: bool) -> Path:
    """The folder of a teacher of the Hub, downloaded as far as it is not here: its index, the small files of the parts
    that are asked for, then the weights that their indexes name. UserError as in `fetching`."""
    here = cached_folder(model.teacher, model.revision)
    if here is not None and _complete(here, text, vae):
        return here
    folder = _teacher_snapshot(model, [INDEX])
    wanted = _wanted(folder, text, vae)
    patterns = [f"{part}/{pattern}" for part in wanted for pattern in TEXTS]
    patterns += [f"{part}/{name}" for part, entry in wanted.items() for name in single_weights(*entry)]
    folder = _teacher_snapshot(model, [INDEX, *patterns, "vae/config.json"])
    indexes = [
        folder / part / f"{name}.index.json" for part, entry in wanted.items() for name in single_weights(*entry)
    ]
    sharded = [f"{i.parent.name}/{name}" for i in indexes if i.is_file() for name in shards(i, "model.teacher", False)]
    if sharded:
        folder = _teacher_snapshot(model, sharded)
    return folder


def _wanted(folder: Path, text: bool, vae: bool) -> dict[str, tuple[str, str]]:
    """(library, class) by part, of the parts that are asked for."""
    parts = parts_of(model_index(folder), folder)
    left_out: tuple[str, ...] = () if text else ("text_encoder", "tokenizer")
    return {part: entry for part, entry in parts.items() if not part.startswith(left_out) and (vae or part != "vae")}


def _complete(folder: Path, text: bool, vae: bool) -> bool:
    try:
        teacher_files(folder, only=_wanted(folder, text, vae))
    except UserError:  # a file is not here yet: it is downloaded
        return False
    return (folder / "vae/config.json").is_file()


def cached_folder(repository: str, revision: str | None) -> Path | None:
    """The commit's folder in the Hub's cache on this machine, None where its index is not there."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository, INDEX, revision=revision)
    return Path(found).parent if isinstance(found, str) else None


def _teacher_snapshot(model: ModelParams, patterns: Iterable[str]) -> Path:
    from huggingface_hub import snapshot_download

    with fetching("model.teacher", "model.revision", model.teacher, model.revision, then="rtdmd cache_teacher"):
        return Path(snapshot_download(model.teacher, revision=model.revision, allow_patterns=list(patterns)))


def fetch_scorer(params: RewardParams, source: str) -> Path:
    """The folder of a scorer's Hub repository, downloaded as far as it is not here. UserError as in `fetching`."""
    patterns = params.sources[source].files
    if not _is_transformers(patterns):
        return _scorer_snapshot(params, source, patterns)
    folder = _scorer_snapshot(params, source, (*TEXTS, SINGLE))
    index = folder / f"{SINGLE}.index.json"
    if index.is_file() and not (folder / SINGLE).is_file():
        folder = _scorer_snapshot(params, source, shards(index, f"rewards: {params.name}: {source}", False))
    return folder


def _is_transformers(patterns: Iterable[str]) -> bool:
    """Whether all texts and all weights are asked for: of the weights then those that transformers would take."""
    return {*TRANSFORMERS_FILES} <= {*patterns}


def _scorer_snapshot(params: RewardParams, source: str, patterns: Iterable[str]) -> Path:
    from huggingface_hub import snapshot_download

    key, pin = f"rewards: {params.name}", params.sources[source].pin
    repository, revision = getattr(params, source), getattr(params, pin)
    with fetching(f"{key}: {source}", f"{key}: {pin}", repository, revision):
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(patterns)))


def scorer_files(folder: Path, key: str, patterns: Iterable[str]) -> list[str]:
    """Names of the files that a scorer reads of a folder: a transformers model's, or those of ``patterns`` (weights as
    safetensors count as well). UserError where the folder, or a shard that its index names, is missing."""
    if not folder.is_dir():
        raise UserError(f"{key}: there is no folder {folder}; correct the path, or name a Hub id and its revision")
    if _is_transformers(patterns):
        return [*plain_texts(folder), *transformers_weights(folder, key)]
    pickled = any(one.endswith((".pt", ".pth")) for one in patterns)
    wanted = {*patterns, "*.safetensors"} if pickled else {*patterns}
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in wanted)]


def etag(path: Path) -> str | None:
    """What the Hub calls a file of its cache (of weights the sha256, of a small file Git's hash): the name of the blob
    that the file's link leads to. None for any other file."""
    target = path.resolve()
    return target.name if path.is_symlink() and target.parent.name == "blobs" else None
