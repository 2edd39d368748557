"""The base model as diffusers names its parts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rtdmd.backbones.snapshot import TEXT_PARTS, model_index
from rtdmd.common.errors import UserError
from rtdmd.common.torch_setup import quiet_imports


@dataclass(frozen=True)
class BaseModel:
    """What model_index.json says."""

    folder: Path
    pipeline: str  # class of the pipeline, e.g. StableDiffusion3Pipeline
    transformer: str  # class of the transformer, e.g. SD3Transformer2DModel
    absent: tuple[str, ...]  # text parts that it names and does not have (SD3 without T5); diffusers wants them said
    text_parts: tuple[str, ...]  # all text parts that it names


def base_model(folder: Path, key: str = "model.teacher") -> BaseModel:
    """Read a diffusers pipeline folder's index; ``key``: the setting that names it, for messages."""
    index = model_index(folder, key)
    text = tuple(part for part in index if part.startswith(TEXT_PARTS))
    absent = tuple(part for part in text if index[part] == [None, None])
    pipeline = index.get("_class_name")
    entry = index.get("transformer")
    transformer = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
    for name in (pipeline, transformer, *text):  # the card writes them as Python, and the gate runs it
        if not isinstance(name, str) or not name.isidentifier():
            raise UserError(
                f"{folder}/model_index.json: {name!r} is not the name of a class or part; take the owner's own file"
            )
    return BaseModel(folder, str(pipeline), str(transformer), absent, text)


def pipeline_class(name: str) -> Any:
    """A pipeline class of diffusers; UserError where it writes no LoRA files."""
    with quiet_imports():
        import diffusers

        found = getattr(diffusers, name, None)
    if found is None or "save_lora_weights" not in dir(found):
        raise UserError(f"model.teacher: diffusers' {name} writes no LoRA files; set publish.format: merged")
    return found
