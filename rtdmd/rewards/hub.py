"""Scorers of the Hub on this machine: what is read of a repository, at its pinned commit, and nothing else of it."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from rtdmd.common.errors import UserError
from rtdmd.common.hub import fetching
from rtdmd.common.model_files import OLD, SINGLE, TEXTS, absent, plain_texts, shards, transformers_weights

if TYPE_CHECKING:
    from rtdmd.rewards.registration import RewardParams

TRANSFORMERS_FILES = (*TEXTS, "*.safetensors")
BELOW = "*/*"
"""Files in folders of a repository, which the Hub's patterns take as well: no scorer reads any (bert-base-uncased has a
copy of itself for another system there)."""


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

    key = f"rewards: {params.name}"
    pin = params.sources[source].pin
    repository = getattr(params, source)
    revision = getattr(params, pin)
    with fetching(f"{key}: {source}", f"{key}: {pin}", repository, revision):
        found = snapshot_download(repository, revision=revision, allow_patterns=list(patterns), ignore_patterns=[BELOW])
        return Path(found)


def model_weights(folder: Path, key: str) -> list[str]:
    """Names of the files of a transformers model's weights. UserError where it has none, or a shard is missing."""
    names = transformers_weights(folder, key)
    if not names:
        raise UserError(f"{key}: {folder} has no {SINGLE} or {OLD}; {absent(folder)}")
    return names


def scorer_files(folder: Path, key: str, patterns: Iterable[str]) -> list[str]:
    """Names of the files that a scorer reads of a folder: a transformers model's, or those of ``patterns`` (weights as
    safetensors count as well). UserError where the folder, a model's weights or a shard of its index is missing."""
    if not folder.is_dir():
        raise UserError(f"{key}: there is no folder {folder}; correct the path, or name a Hub id and its revision")
    if _is_transformers(patterns):
        return [*plain_texts(folder), *model_weights(folder, key)]
    pickled = any(one.endswith((".pt", ".pth")) for one in patterns)
    wanted = {*patterns, "*.safetensors"} if pickled else {*patterns}
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in wanted)]
