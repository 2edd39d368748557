"""The whole transformer as a file: base weights with an adapter merged in, or a student trained with all its weights.

Merging happens in float32 and is cast once to the published dtype. Nothing is skipped: an adapter tensor that finds no
weight, or a weight of another shape, is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from rtdmd.common.errors import UserError
from rtdmd.common.files import load_tensors, read_json, save_tensors, write_json
from rtdmd.publish.compose import Adapter

MERGED = "transformer/diffusion_pytorch_model.safetensors"
CONFIG = "transformer/config.json"
Weights = dict[str, Tensor]


def check_fits(adapter: Adapter, shapes: Mapping[str, tuple[int, ...]], what: str) -> None:
    """UserError unless every adapted module is a linear layer of the base with the adapter's shape.

    shapes: weight name -> shape of the base's transformer. what: how the message calls the adapter.
    """
    for module in adapter.modules():
        found = shapes.get(f"{module}.weight")
        if found is None:
            raise UserError(
                f"{what}: {module} is no layer of the base model; another base, or another family, is needed"
            )
        if tuple(found) != tuple(adapter.shape(module)):
            raise UserError(
                f"{what}: {module} is made for a weight {adapter.shape(module)}, the base has {tuple(found)};"
                " another base is needed"
            )


def merged_weights(base: Mapping[str, Tensor], adapter: Adapter, dtype: torch.dtype) -> Weights:
    """All weights of the transformer with the adapter added, computed in float32, cast once to ``dtype``.

    base: the transformer's state, any dtype. Raises UserError where an adapted module is not in it (see `check_fits`).
    """
    check_fits(adapter, {name: tuple(value.shape) for name, value in base.items()}, "the adapter")
    adapted = {f"{module}.weight": module for module in adapter.modules()}
    merged = {}
    for name, value in base.items():
        full = value.detach().cpu().float()
        if name in adapted:
            full = full + adapter.delta(adapted[name])
        merged[name] = full.to(dtype)
    return merged


def full_weights(
    path: Path, base: Mapping[str, Tensor], dtype: torch.dtype, remedy: str = "train that stage again"
) -> Weights:
    """Weights of a whole transformer (of ``adapter.mode: full``, or merged), cast to ``dtype``; UserError
    unless keys and shapes are the base's and all numbers finite. ``remedy``: what brings other weights."""
    tensors, _ = load_tensors(path)
    odd = sorted(set(tensors) ^ set(base)) or [k for k in base if tensors[k].shape != base[k].shape]
    if odd:
        raise UserError(
            f"{path} is not the base's transformer with other weights ({len(odd)} tensors differ, first {odd[0]});"
            " model.teacher must be what it was trained on (model.student, where that is set), adapter.mode how"
        )
    bad = [key for key, value in tensors.items() if not torch.isfinite(value).all()]
    if bad:
        raise UserError(f"{path}: {bad[0]} holds numbers that are not finite; {remedy}")
    return {name: value.float().to(dtype) for name, value in tensors.items()}


def write_merged(weights: Weights, base_config: Path, folder: Path, metadata: Mapping[str, str]) -> None:
    """Write ``folder``/transformer: weights in one file, and the base's config.json. The same input gives the same
    bytes."""
    config = read_json(base_config, "the base model's file is damaged; bring it back, or download it again")
    write_json(folder / CONFIG, config)
    save_tensors(weights, folder / MERGED, {"format": "pt", **metadata})
