"""A pipeline's parts, one by one: only classes that the pipeline itself declares, and every tensor of every file used.

Names that come from a folder are looked up among the pipeline's own classes and never imported, so a folder cannot run
code. Weights whose names or shapes are not the model's are refused from the files' headers, before they are read.
``key`` is everywhere the setting that names the folder, with which every message begins.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from rtdmd.common.errors import UserError
from rtdmd.common.model_files import (
    INDEX,
    bring_back,
    check_files,
    model_index,
    parts_of,
    read_config,
    teacher_files,
    weight_files,
)
from rtdmd.common.parsing import first_line
from rtdmd.common.pretrained import (
    FOREIGN,
    check_pretrained,
    pretrained_exactly,
    refuse_keys,
    refuse_kinds,
    weight_headers,
)
from rtdmd.common.torch_setup import quiet_loading

DIFFUSERS_STEM = "diffusion_pytorch_model"
LONGEST = 100_000  # tokens; transformers writes 1e30 where a tokenizer does not say
COUNTERS = ("position_ids",)  # 0, 1, 2, ...: older files carry them, the models make their own


def part_classes(pipeline_class: Any, folder: Path, family: str, key: str) -> dict[str, Any]:
    """Class by part, of the parts that the folder's index has.

    UserError where the folder is of another pipeline, or a part is of a class that the pipeline does not declare.
    """
    index = model_index(folder, key)
    name = index.get("_class_name")
    if name != pipeline_class.__name__:
        raise UserError(
            f"{key}: model.family: {family} needs a {pipeline_class.__name__}, but {folder} is a {name}; name one, or"
            " set model.family to its family"
        )
    parts = parts_of(index, folder, key)
    return {part: _declared(pipeline_class, part, name, folder, key) for part, (_, name) in parts.items()}


def _declared(pipeline_class: Any, part: str, name: str, folder: Path, key: str) -> Any:
    """The class that the pipeline declares for a part, where ``name`` is its name (a tokenizer's older or faster form
    counts)."""
    kinds = pipeline_class._get_signature_types().get(part, ())
    for kind in kinds:
        if kind.__name__ == name or ("Tokenizer" in name and kind.__name__ == name.removesuffix("Fast")):
            return kind
    allowed = " or ".join(kind.__name__ for kind in kinds) or f"no part {part}"
    raise UserError(f"{key}: {folder / INDEX} has {part}: {name}; {pipeline_class.__name__} allows {allowed}")


def pipeline_parts(pipeline_class: Any) -> list[str]:
    """Names of the parts that a pipeline takes, those that a folder may leave out too."""
    kinds = pipeline_class._get_signature_types()
    return [part for part, found in kinds.items() if bool not in found]


def load_part(kind: Any, folder: Path, part: str, dtype: torch.dtype, key: str) -> Any:
    """A part of a pipeline's folder: a model in ``dtype`` with every tensor of its files, a scheduler or a tokenizer.

    UserError that names the file, and the tensor where one is missing, left over or of another shape.
    """
    place = folder / part
    if not issubclass(kind, nn.Module):
        try:
            found = kind.from_pretrained(place, local_files_only=True)
        except FOREIGN as error:
            raise _damaged(place, error, key) from error
        path = place / "tokenizer_config.json"
        if kind.__name__.startswith("CLIP") and found.model_max_length > LONGEST:  # the pipelines cut at this length
            raise UserError(f"{key}: {path} is missing, or has no model_max_length; {bring_back(path)}")
        if kind.__name__.startswith("Qwen") and not found.chat_template:  # the pipelines write prompts with it
            template = place / "chat_template.jinja"
            raise UserError(f"{key}: {template} is missing, and {path} has no chat_template; {bring_back(template)}")
        return found
    if kind.__module__.startswith("transformers."):
        _refuse_foreign(kind, place, key)
        return pretrained_exactly(kind, place, key, dtype, ignored=COUNTERS)
    check_model(kind, place, key)
    try:
        with quiet_loading():
            return kind.from_pretrained(place, torch_dtype=dtype, local_files_only=True, use_safetensors=True)
    except FOREIGN as error:
        raise _damaged(place, error, key) from error


def _damaged(place: Path, error: BaseException, key: str) -> UserError:
    return UserError(f"{key}: {place}: a file is damaged or missing ({first_line(error)}); {bring_back(place)}")


def _refuse_foreign(kind: Any, place: Path, key: str) -> None:
    """UserError where a part of transformers is configured as another model, which transformers would make of it all
    the same, or where its folder would have something else read."""
    weight_files(place, "transformers", key)
    config = place / "config.json"
    model_type = read_config(config, key).get("model_type")
    if model_type != kind.config_class.model_type:
        raise UserError(
            f"{key}: {config} is of a {model_type}, not of a {kind.config_class.model_type}; {bring_back(config)}"
        )


def skeleton(kind: Any, place: Path, key: str) -> nn.Module:
    """A part of diffusers without weights, on the meta device, as its configuration describes it."""
    path = place / "config.json"
    config = read_config(path, key)
    if config.get("_class_name", kind.__name__) != kind.__name__:
        raise UserError(f"{key}: {path} is of a {config['_class_name']}, not of a {kind.__name__}; {bring_back(path)}")
    try:
        with torch.device("meta"):
            module: nn.Module = kind.from_config(config)
    except FOREIGN as error:
        raise UserError(
            f"{key}: {path} describes no {kind.__name__} ({first_line(error)}); {bring_back(place)}"
        ) from error
    return module


def check_model(kind: Any, place: Path, key: str) -> None:
    """UserError where names, shapes or kinds of number in the headers of a diffusers part's weights are not those of
    the model that its configuration describes. No weight is read."""
    wanted = {name: tuple(tensor.shape) for name, tensor in skeleton(kind, place, key).state_dict().items()}
    found = {name: shape for name, (_, _, shape) in weight_headers(place, key, DIFFUSERS_STEM).items()}
    refuse_keys(
        place,
        key,
        missing=wanted.keys() - found.keys(),
        unexpected=found.keys() - wanted.keys(),
        mismatched=[name for name in wanted.keys() & found.keys() if wanted[name] != found[name]],
    )
    refuse_kinds(place, key, DIFFUSERS_STEM)


def check_base(pipeline_class: Any, folder: Path, family: str, key: str) -> None:
    """All that can be known of a base's folder without reading its weights: every file that its index names is there
    and whole by its header, every model has exactly its tensors, tokenizers and scheduler can be loaded. UserError that
    names the file."""
    classes = part_classes(pipeline_class, folder, family, key)
    check_files(folder, teacher_files(folder, key), key)
    for part, kind in classes.items():
        place = folder / part
        if not issubclass(kind, nn.Module):
            load_part(kind, folder, part, torch.float32, key)
        elif kind.__module__.startswith("diffusers."):
            check_model(kind, place, key)
        else:
            _refuse_foreign(kind, place, key)
            check_pretrained(kind, place, key, ignored=COUNTERS)
