"""The models of a run by their shapes alone: the teacher's parts behind our own backbone, no file of weights read.

On the meta device they have no weights, for a plan; on another one they have random ones, for a rehearsal at the real
size. A part's config.json comes from the teacher's folder, from the Hub's snapshot on this machine, or from the record
of `rtdmd.plan.published`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from rtdmd.backbones import PipelineBackbone, family_module
from rtdmd.backbones.parts import fitting_size
from rtdmd.common.errors import UserError
from rtdmd.common.files import read_json
from rtdmd.common.model_files import INDEX, bring_back, model_index, parts_of
from rtdmd.common.torch_setup import quiet_imports
from rtdmd.plan.cost_counter import META
from rtdmd.plan.published import TEACHERS

if TYPE_CHECKING:
    from rtdmd.config import ModelParams

TEXT_PARTS = ("text_encoder", "text_encoder_2", "text_encoder_3")


def part_configs(model: ModelParams, root: Path = Path(".")) -> dict[str, dict[str, Any]]:
    """config.json of the transformer, the decoder and the text encoders there are, by folder.

    UserError where a local folder lacks one that its index names, and for a Hub id that is neither recorded nor on this
    machine.
    """
    names = ("transformer", "vae", *TEXT_PARTS)
    if model.is_hub_id:
        paths = {name: _cached(model, f"{name}/config.json") for name in names}
    else:
        paths = {name: root / model.teacher / name / "config.json" for name in names}
    there = {name: path for name, path in paths.items() if path is not None and path.is_file()}
    found = {name: read_json(path, "see model.teacher in params.yaml") for name, path in there.items()}
    index = _cached(model, INDEX) if model.is_hub_id else root / model.teacher / INDEX
    named = set(parts_of(model_index(index.parent), index.parent)) if index is not None and index.is_file() else set()
    lacking = sorted({"transformer", "vae", *(named & {*names})} - found.keys())
    if not lacking:
        refuse_foreign(model, found)
        return found
    if model.teacher in TEACHERS:
        return TEACHERS[model.teacher]
    if model.is_hub_id:
        known = ", ".join(TEACHERS)
        raise UserError(
            f"model.teacher: the shapes of {model.teacher} are not known here; run `rtdmd cache_teacher` once, which"
            f" downloads it, or name a local folder or one of {known}"
        )
    configs = " and ".join(f"{name}/config.json" for name in lacking)
    raise UserError(f"model.teacher: {root / model.teacher} has no {configs}; {bring_back(root / model.teacher)}")


def refuse_foreign(model: ModelParams, configs: Mapping[str, dict[str, Any]]) -> None:
    """UserError where a configuration names a class that the family's pipeline does not have for the part: names that
    come from a file are compared, and what they name is not looked for elsewhere."""
    kinds = family_module(model.family).PIPELINE._get_signature_types()
    for part, config in configs.items():
        name = config.get("_class_name") or next(iter(config.get("architectures") or ()), None)
        allowed = [kind.__name__ for kind in kinds.get(part, ())]
        if name not in allowed:
            raise UserError(
                f"model.teacher: {model.teacher}: {part}/config.json is of a {name}; {model.family} allows"
                f" {' or '.join(allowed) or 'no such part'}"
            )


def _cached(model: ModelParams, name: str) -> Path | None:
    """A file of the pinned commit in the Hub's cache on this machine, None where it is not there."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(model.teacher, name, revision=model.revision)
    return Path(found) if isinstance(found, str) else None


@contextmanager
def built_on(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Modules built inside are on ``device``, in ``dtype``."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            yield
    finally:
        torch.set_default_dtype(before)


def backbone_of(
    parts: Mapping[str, nn.Module], model: ModelParams, configs: Mapping[str, dict[str, Any]]
) -> PipelineBackbone:
    """Our backbone over the pipeline's own class with these parts of it and a scheduler, no text encoder.

    UserError where the resolution is no multiple of what the model needs.
    """
    own = family_module(model.family)
    accepted = inspect.signature(own.PIPELINE).parameters
    required = [name for name, about in accepted.items() if about.default is inspect.Parameter.empty]
    with quiet_imports():
        from diffusers import FlowMatchEulerDiscreteScheduler
    # Levels change no cost; the shift is that of every published base, without FLUX's growth with the image.
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipeline = own.PIPELINE(**(dict.fromkeys(required) | dict(parts) | {"scheduler": scheduler}))
    return backbone_on(pipeline, model, configs)


def backbone_on(pipeline: Any, model: ModelParams, configs: Mapping[str, dict[str, Any]]) -> PipelineBackbone:
    """Our backbone over such a pipeline, at ``model.size``; errors as in `backbone_of`."""
    own = family_module(model.family)
    patch = own.latent_multiple(configs["transformer"])
    size = fitting_size(model, len(configs["vae"]["block_out_channels"]), patch, model.teacher)
    backbone: PipelineBackbone = own.BACKBONE(pipeline, size, model.max_sequence_length)
    return backbone


def diffusers_part(config: Mapping[str, Any], dtype: torch.dtype, device: torch.device = META) -> nn.Module:
    """A diffusers model of a config, frozen, on the meta device, or on another one with its class's random weights."""
    with quiet_imports():
        import diffusers
    kind = getattr(diffusers, config["_class_name"])
    with built_on(device, dtype):
        built: nn.Module = kind.from_config(dict(config))
    for module in built.modules():  # what a checkpoint holds is read in ``dtype``, buffers too
        for name in module._buffers.keys() - module._non_persistent_buffers_set:
            buffer = module._buffers[name]
            module._buffers[name] = buffer.to(dtype) if buffer is not None and buffer.is_floating_point() else buffer
    return built.to(device).requires_grad_(False).eval()


def text_encoders(configs: Mapping[str, dict[str, Any]], dtype: torch.dtype) -> dict[str, Any]:
    """The text encoders by folder, frozen, on the meta device."""
    with quiet_imports():
        import transformers
    built = {}
    for name in TEXT_PARTS:
        if name not in configs:
            continue
        config = transformers.AutoConfig.for_model(**configs[name])
        with built_on(META, dtype):
            built[name] = getattr(transformers, configs[name]["architectures"][0])(config)
        built[name].requires_grad_(False).eval()
    return built


def text_shapes(model: ModelParams, configs: Mapping[str, dict[str, Any]]) -> dict[str, tuple[int, ...]]:
    """Shape of one prompt's conditioning, by tensor, as the family's `encode` gives it."""
    return family_module(model.family).text_shapes(model, configs)
