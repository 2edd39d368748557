"""What lies in a model's repository beside its weights."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from rtdmd.common.files import save_tensors, write_json

PAGES = (".gitattributes", "README.md")


def write_beside(folder: Path, *names: str) -> None:
    """Write what is not read, pages for people and other copies of the weights: files of these ``names``, where they
    are not there yet. None of them can be loaded, so that whoever takes one for the model fails."""
    for name in (*PAGES, *names):
        path = folder / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"Not read by any scorer: {name}\n", encoding="utf-8")


def write_shards(tensors: Mapping[str, Tensor], single: Path, count: int, about: Mapping[str, str]) -> None:
    """Write tensors as ``count`` shards with their index, in the place of the one file ``single``; ``about``: what each
    shard says of itself."""
    names = sorted(tensors)
    places: dict[str, str] = {}
    for shard in range(count):
        held = names[shard * len(names) // count : (shard + 1) * len(names) // count]
        file = f"{single.stem}-{shard + 1:05}-of-{count:05}.safetensors"
        save_tensors({name: tensors[name] for name in held}, single.with_name(file), dict(about))
        places |= dict.fromkeys(held, file)
    size = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": places}
    write_json(single.with_name(f"{single.name}.index.json"), index)


def write_fast(folder: Path, tokenizer: Any) -> None:
    """Write the tokenizer.json that repositories have beside the older vocabulary; tokenizer: the class that reads
    it."""
    with tempfile.TemporaryDirectory() as made:
        tokenizer.from_pretrained(folder, local_files_only=True).save_pretrained(made)
        shutil.copy(Path(made) / "tokenizer.json", folder)
