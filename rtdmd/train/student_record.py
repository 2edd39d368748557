"""A student's file, read together with what is recorded of how it was trained.

The header of generator.safetensors tells the adapter's rank and alpha, an imported student's also section `model`; a
trained one's section `model` is in resolved.json beside it. Loaded at another alpha, on another base or in other steps
than it was trained in, a student draws worse images and no error tells why.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from rtdmd.common.errors import UserError
from rtdmd.common.files import read_json
from rtdmd.common.lazy_tensors import open_tensors
from rtdmd.common.parsing import parse_json
from rtdmd.config import Params

MERGED = {"stage_one_adapters": "merged"}
"""What a header has beside the rest where stage one's adapter is merged below stage two's; stacked is not written."""
MODEL_KEYS = (
    "family",
    "teacher",
    "revision",
    "student",
    "resolution",
    "width",
    "max_sequence_length",
    "num_steps",
    "shift",
    "eta",
)
"""Keys of section `model` that decide what a student draws (dtype: only the rounding; the others: the teacher)."""


def read_student(path: Path, params: Params, source: str) -> Mapping[str, Tensor]:
    """Tensors of a student's file, each read when it is asked for. UserError that names the first setting of ``params``
    that is not the student's.

    source: how the message calls the file.
    """
    tensors, header = open_tensors(path)
    for key, was, now in _differences(path, header, params):
        raise UserError(
            f"{source} was trained with {key}: {was}, params.yaml says {now}; set {key}: {was} to use it, or run the"
            " stage that makes it again"
        )
    return tensors


def student_header(stage: str, params: Params) -> dict[str, str]:
    """What the header of a student's file tells of how it was trained; for stage two also, where it is so, that the
    adapter stands on stage one's merged into its base."""
    adapter = params.adapter
    about = {"stage": stage, "mode": adapter.mode, "rank": str(adapter.rank), "alpha": str(adapter.alpha)}
    merged = stage == "train_rtdmd" and params.train_rtdmd.stage_one_adapters == "merged" and adapter.mode == "lora"
    return about | {"role": "generator"} | (MERGED if merged else {})


def stands_on_merged(path: Path) -> bool:
    """Whether the student of a file, which `read_student` reads, stands on stage one's adapter merged into its base."""
    with safe_open(path, framework="pt") as file:
        header = file.metadata() or {}
    return header.items() >= MERGED.items()


def _differences(path: Path, header: Mapping[str, str], params: Params) -> Iterator[tuple[str, Any, Any]]:
    """(key, as recorded, as in params.yaml) where the two differ."""
    if params.adapter.mode == "lora":
        for key in ("rank", "alpha"):
            now = getattr(params.adapter, key)
            if key in header and header[key] not in (str(now), f"{now:g}"):
                yield f"adapter.{key}", header[key], now
    model = _recorded_model(path, header)
    if not model:
        return
    here = params.model
    names = dict[str, str]()
    if "model" in header:  # imported: it knows its own base alone, and no teacher
        here = here.of_student()
        names = {"teacher": here.key, "revision": here.pin}
    present = here.model_dump(mode="json")
    for key in MODEL_KEYS:
        absent = None if key in ("student", "width", "shift") else present[key]  # in older records
        was = model.get(key, absent)
        if was != present[key]:
            yield names.get(key, f"model.{key}"), _flow(was), _flow(present[key])


def _recorded_model(path: Path, header: Mapping[str, str]) -> Mapping[str, Any]:
    if "model" in header:
        return parse_json(header["model"], f"{path}: its record of the model", "train that stage again")
    beside = path.parent / "resolved.json"
    settings = read_json(beside).get("params") if beside.is_file() else None
    model = settings.get("model") if isinstance(settings, dict) else None
    return model if isinstance(model, dict) else {}


def _flow(value: Any) -> str:
    """A value as params.yaml has it."""
    return value if isinstance(value, str) else json.dumps(value).replace('"', "")
