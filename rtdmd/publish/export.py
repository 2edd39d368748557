"""The adapter file that plain diffusers loads: one LoRA with its alpha, through the pipeline class's own writer."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rtdmd.backbones.protocol import PUBLISHED
from rtdmd.backbones.snapshot import TEXT_PARTS, model_index
from rtdmd.common.errors import UserError
from rtdmd.common.files import load_tensors, save_tensors
from rtdmd.common.torch_setup import quiet_imports
from rtdmd.publish.compose import Adapter


@dataclass(frozen=True)
class BaseModel:
    """The base model as diffusers names its parts (from model_index.json)."""

    folder: Path
    pipeline: str  # class of the pipeline, e.g. StableDiffusion3Pipeline
    transformer: str  # class of the transformer, e.g. SD3Transformer2DModel
    absent: tuple[str, ...]  # text parts that it names and does not have (SD3 without T5); diffusers wants them said
    text_parts: tuple[str, ...]  # all text parts that it names

    @property
    def transformer_config(self) -> Path:
        """The transformer's config.json."""
        return self.folder / "transformer" / "config.json"


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


def adapter_metadata(adapter: Adapter) -> dict[str, Any]:
    """PEFT's LoraConfig entries that a loader needs, for the file's header."""
    alpha = int(adapter.alpha) if adapter.alpha.is_integer() else adapter.alpha
    return {"r": adapter.rank, "lora_alpha": alpha, "target_modules": adapter.modules(), "bias": "none"}


def write_lora(
    adapter: Adapter,
    path: Path,
    metadata: Mapping[str, str] | None = None,
    pipeline: str = "StableDiffusion3Pipeline",
) -> None:
    """Write an adapter to ``path`` as the pipeline class's ``save_lora_weights`` does, with the same bytes every time.

    diffusers decides the keys and the header; only the header's order, which it leaves to chance, is made fixed, and
    ``metadata`` is added to it. pipeline: the class's name in diffusers.
    """
    with tempfile.TemporaryDirectory() as folder:
        pipeline_class(pipeline).save_lora_weights(
            folder,
            transformer_lora_layers={key: value.contiguous() for key, value in adapter.tensors.items()},
            transformer_lora_adapter_metadata=adapter_metadata(adapter),
        )
        tensors, header = load_tensors(Path(folder) / PUBLISHED)
    save_tensors(tensors, path, header | dict(metadata or {}))


def pipeline_class(name: str) -> Any:
    """A pipeline class of diffusers; UserError where it writes no LoRA files."""
    with quiet_imports():
        import diffusers

        found = getattr(diffusers, name, None)
    if found is None or "save_lora_weights" not in dir(found):
        raise UserError(f"model.teacher: diffusers' {name} writes no LoRA files; set publish.format: merged")
    return found
