"""What else a repository holds that a loader would take in place of the published weights, or beside them.

diffusers and transformers look a folder's weights up by name: an index of shards goes before one file, a `.bin` is
taken where there is no `.safetensors`, a variant (`.fp16.`) where one asks for it, `load_lora_weights` takes any
adapter that it finds. So of such files the published ones must be the only ones: an upload removes the others in the
commit that brings its own.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from pathlib import PurePosixPath

WEIGHTS_FOLDERS = frozenset({".", "transformer"})  # where a published folder has its weights
WEIGHTS = frozenset({".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".msgpack", ".h5", ".onnx", ".gguf"})
INDEX = re.compile(r".+\.index(\.[^.]+)?\.json")  # of shards; a variant's has its name in it
DESCRIPTIONS = frozenset({"adapter_config.json", "transformer/config.json"})  # of weights that are not the published


def shadows(there: Iterable[str], published: Collection[str]) -> list[str]:
    """Files of a repository that would be loaded for, or beside, the weights among ``published``; sorted.

    there: every path in the repository. Other files (a licence, notes, a VAE's folder) are not ours to remove.
    """
    return sorted(path for path in there if path not in published and _describes_weights(path))


def _describes_weights(path: str) -> bool:
    place = PurePosixPath(path)
    if path in DESCRIPTIONS:
        return True
    if str(place.parent) not in WEIGHTS_FOLDERS:
        return False
    return place.suffix in WEIGHTS or INDEX.fullmatch(place.name) is not None
