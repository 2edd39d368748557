"""From ``model.teacher`` to a folder on this machine: a diffusers folder, or a Hub repository at a pinned commit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rtdmd.common.errors import UserError
from rtdmd.common.files import sha256_file
from rtdmd.common.hub import fetching

if TYPE_CHECKING:
    from rtdmd.config import ModelParams

TEXT_PARTS = ("text_encoder", "tokenizer")
DUPLICATES = ["*.fp16.*", "*.bin", "*.ckpt", "*.msgpack", "*.onnx*", "*.gguf"]  # other forms of the same weights


def teacher_folder(model: ModelParams, *, text: bool, vae: bool = True, root: Path = Path(".")) -> Path:
    """The folder that holds the teacher's parts, downloaded first where ``model.teacher`` is a Hub id.

    Only what is asked for is downloaded; a relative folder starts from ``root``. Raises UserError that says what to
    do: no folder, no model_index.json, a gated or unknown repository, no such commit, no connection.
    """
    if model.is_hub_id:
        return _download(model, text=text, vae=vae)
    folder = root / model.teacher
    if not folder.is_dir():
        raise UserError(
            f"model.teacher: there is no folder {folder}; correct the path, or name a Hub id and its revision"
        )
    if not (folder / "model_index.json").is_file():
        raise UserError(f"model.teacher: {folder} has no model_index.json, so it is not a diffusers pipeline folder")
    return folder


def model_index(folder: Path) -> dict[str, Any]:
    """The pipeline's index: class name and, for each part, [library, class], [null, null] where it has no such part."""
    index: dict[str, Any] = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    return index


def text_identity(model: ModelParams, root: Path = Path(".")) -> dict[str, Any]:
    """What the text conditioning is computed from: the pinned commit of a Hub id, or the sha256 of each local file.

    Local files: text encoders, tokenizers, the index, and the transformer's config (its width pads a missing encoder).
    """
    if model.is_hub_id:
        return {"teacher": model.teacher, "revision": model.revision}
    folder = root / model.teacher
    parts = [folder / "model_index.json", folder / "transformer" / "config.json"]
    parts += [file for name in TEXT_PARTS for file in folder.glob(f"{name}*/**/*") if file.is_file()]
    return {"teacher": model.teacher, "files": {str(p.relative_to(folder)): sha256_file(p) for p in sorted(parts)}}


def _download(model: ModelParams, *, text: bool, vae: bool) -> Path:
    from huggingface_hub import snapshot_download

    wanted = ["model_index.json", "scheduler/*", "transformer/*", "vae/*" if vae else "vae/config.json"]
    wanted += [f"{name}*/*" for name in TEXT_PARTS] if text else []
    with fetching("model.teacher", "model.revision", model.teacher, model.revision, then="rtdmd cache_teacher"):
        return Path(
            snapshot_download(model.teacher, revision=model.revision, allow_patterns=wanted, ignore_patterns=DUPLICATES)
        )
