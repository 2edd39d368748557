"""From ``model.teacher`` or ``model.student`` to a folder on this machine: a diffusers folder, or a Hub repository at a
pinned commit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rtdmd.backbones.hub import fetch_base
from rtdmd.common.digests import cached_digest
from rtdmd.common.errors import UserError
from rtdmd.common.model_files import INDEX, bring_back, model_index, no_folder, teacher_files

if TYPE_CHECKING:
    from rtdmd.config import ModelParams

__all__ = ["base_folder", "model_index", "text_identity"]

TEXT_PARTS = ("text_encoder", "tokenizer")


def base_folder(model: ModelParams, *, text: bool, vae: bool = True, root: Path = Path(".")) -> Path:
    """The folder that holds the parts of ``model.teacher``, downloaded first where that is a Hub id.

    Only what is asked for is downloaded; a relative folder starts from ``root``. Raises UserError that says what to
    do: no folder, no model_index.json, a gated or unknown repository, no such commit, no connection.
    """
    if model.is_hub_id:
        return fetch_base(model, text=text, vae=vae)
    folder = root / model.teacher
    if not folder.is_dir():
        raise UserError(f"{model.key}: {no_folder(folder)}")
    if not (folder / INDEX).is_file():
        raise UserError(
            f"{model.key}: {folder} has no {INDEX}, so it is not a diffusers pipeline folder;"
            f" {bring_back(folder / INDEX)}"
        )
    return folder


def text_identity(model: ModelParams, root: Path = Path(".")) -> dict[str, Any]:
    """What the text conditioning is computed from: the pinned commit of a Hub id, or the sha256 of each local file.

    Local files: text encoders, tokenizers, the index, and the transformer's config (its width pads a missing encoder).
    """
    if model.is_hub_id:
        return {"teacher": model.teacher, "revision": model.revision}
    folder = root / model.teacher
    index = model_index(folder)
    parts = [part for part in index if part.startswith(TEXT_PARTS) and isinstance(index[part], list)]
    names = {*teacher_files(folder, only=parts), "transformer/config.json"}
    return {"teacher": model.teacher, "files": {name: cached_digest(folder / name, root) for name in sorted(names)}}
