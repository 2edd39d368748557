"""The whole transformer as a file: base weights with an adapter merged in, or a student trained with all its weights.

Merging happens in float32 and is cast once to the published dtype, a tensor at a time, when it is asked for. Nothing is
skipped: an adapter tensor that finds no weight, or a weight of another shape, is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from rtdmd.backbones.loading import DIFFUSERS_STEM
from rtdmd.common.errors import UserError
from rtdmd.common.files import read_json, save_tensors, write_json
from rtdmd.common.lazy_tensors import KINDS, LazyTensors, not_finite, odd_names, open_tensors, read_tensor, shapes_of
from rtdmd.common.pretrained import weight_headers
from rtdmd.publish.adapter import Adapter, check_fits

MERGED = "transformer/diffusion_pytorch_model.safetensors"
CONFIG = "transformer/config.json"
Weights = Mapping[str, Tensor]


def base_weights(folder: Path, key: str) -> Weights:
    """The weights of a base's transformer as its files have them, each read when it is asked for. folder: of the whole
    pipeline; key: the setting that names it, for messages."""
    found = weight_headers(folder / "transformer", key, DIFFUSERS_STEM)
    layouts = {name: (KINDS[number], shape) for name, (_, number, shape) in found.items()}
    return LazyTensors(layouts, lambda name: read_tensor(found[name][0], name))


def merged_weights(base: Mapping[str, Tensor], adapter: Adapter, dtype: torch.dtype) -> Weights:
    """All weights of the transformer with the adapter added, computed in float32, cast once to ``dtype``; each is made
    when it is asked for.

    base: the transformer's state, any dtype. Raises UserError where an adapted module is not in it (see `check_fits`).
    """
    shapes = shapes_of(base)
    check_fits(adapter, shapes, "the adapter")
    adapted = {f"{module}.weight": module for module in adapter.modules()}

    def merged(name: str) -> Tensor:
        full = base[name].detach().cpu().float()
        if name in adapted:
            full = full + adapter.delta(adapted[name])
        return full.to(dtype)

    return LazyTensors({name: (dtype, shape) for name, shape in shapes.items()}, merged)


def full_weights(
    path: Path, base: Mapping[str, Tensor], dtype: torch.dtype, remedy: str = "train that stage again"
) -> Weights:
    """Weights of a whole transformer (of ``adapter.mode: full``, or merged), cast to ``dtype``, each read when it is
    asked for; UserError unless keys and shapes are the base's and all numbers finite. ``remedy``: what brings other
    weights."""
    tensors, _ = open_tensors(path)
    if odd := odd_names(tensors, base):
        raise UserError(
            f"{path} is not the base's transformer with other weights ({len(odd)} tensors differ, first {odd[0]});"
            " model.teacher must be what it was trained on (model.student, where that is set), adapter.mode how"
        )
    if (bad := not_finite(tensors)) is not None:
        raise UserError(f"{path}: {bad} holds numbers that are not finite; {remedy}")
    layouts = {name: (dtype, shape) for name, shape in shapes_of(tensors).items()}
    return LazyTensors(layouts, lambda name: tensors[name].float().to(dtype))


def write_merged(weights: Weights, base_config: Path, folder: Path, metadata: Mapping[str, str]) -> None:
    """Write ``folder``/transformer: weights in one file, and the base's config.json. The same input gives the same
    bytes."""
    config = read_json(base_config, "the base model's file is damaged; bring it back, or download it again")
    write_json(folder / CONFIG, config)
    save_tensors(weights, folder / MERGED, {"format": "pt", **metadata})
