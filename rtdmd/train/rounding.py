"""Whether an update is still there once it is added to the weights and rounded to their dtype.

A short run at a low rate moves weights by less than half a bfloat16 step. Its merged export is then the model before
it, and the gate, which asks for a student that is farther from the base than rounding, refuses it after minutes without
knowing why. Here the same is said from the weights alone, in seconds, and first where the training ends.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rtdmd.common.torch_setup import DTYPES

if TYPE_CHECKING:
    from rtdmd.config import Params
    from rtdmd.train.adapters import AdapterBank

MIN_MOVE = 1e-5
"""Of the weights' norm. The gate needs ten times the rounding of float32 sampling, which is about 1e-6 of a latent."""


def surviving_move(pairs: Iterable[tuple[Tensor, Tensor]], dtype: torch.dtype) -> float:
    """How far (before, after) are apart once both are rounded to ``dtype``, along the exact update d, in units of the
    weights' norm: <round(after) - round(before), d> / (|d| |before|) over all pairs of equal shapes.

    Along d, because weights that do not stand on the grid of ``dtype`` are moved by its steps in all directions.
    """
    along = 0.0
    exact = 0.0
    size = 0.0
    for before, after in pairs:
        update = (after.detach() - before.detach()).double()
        rounded = after.detach().to(dtype).double() - before.detach().to(dtype).double()
        along += (rounded * update).sum().item()
        exact += update.square().sum().item()
        size += before.detach().double().square().sum().item()
    return along / math.sqrt(exact * size) if exact * size > 0 else 0.0


def generator_moves(bank: AdapterBank) -> Iterator[tuple[Tensor, Tensor]]:
    """Each adapted weight of the generator without its own adapter and with it, merged in float32; the weights of the
    copies in full mode. The base must be whole (`sharding: none`)."""
    *stage_one, own = bank.stacks["generator"]
    if bank.full:
        former = bank.state(stage_one[-1]) if stage_one else dict(bank.base("generator").state_dict())
        for name, after in bank.state(own).items():
            yield former[name].cpu().float(), after.float()
        return
    bases, (*below, _) = bank.parts("generator")
    for layer, base in zip(bank.layers(own), bases, strict=True):
        before = base.weight.detach().float()
        for name in below:
            before = before + layer.get_delta_weight(name).float()
        after = before + layer.get_delta_weight(own).float()
        yield before, after


def report_lost_update(params: Params, stage: str, bank: AdapterBank) -> None:
    """A line on standard error, at the end of a training stage, where the update would not survive its rounding."""
    if getattr(params, stage).sharding != "none":
        return  # the base is in pieces; publish says it
    move = surviving_move(generator_moves(bank), DTYPES[params.model.dtype])
    if move < MIN_MOVE:
        length = {"train_acdmd": "iterations", "train_rtdmd": "epochs"}[stage]
        print(
            f"{stage}: merged and rounded to {params.model.dtype} (model.dtype), the update moves the weights by"
            f" {move:.1e} of their norm: a merged export would be the model before this stage, and publish may refuse"
            f" it; train longer ({stage}.{length}) or at a larger rate ({stage}.generator_optimizer.lr, ema_decay)",
            file=sys.stderr,
        )


def report_lost_export(base: Mapping[str, Tensor], weights: Mapping[str, Tensor], dtype: str) -> float:
    """For publish, before the gate: a line on standard error where a merged export is the base model but for rounding.

    base, weights: the transformer's tensors by name; ``dtype``: the published one, for the message. Returns how far the
    weights moved, relative to their norm.
    """
    pairs = ((base[name].cpu().to(after.dtype).float(), after.cpu().float()) for name, after in weights.items())
    move = surviving_move(pairs, torch.float32)
    if move < MIN_MOVE:
        print(
            f"publish: rounded to {dtype} (model.dtype), the merged weights differ from the base model's by {move:.1e}"
            " of their norm, so that the gate will hardly tell them apart and may refuse them; train longer"
            " (train_acdmd.iterations, train_rtdmd.epochs) or at larger rates (generator_optimizer.lr, ema_decay), or"
            " set publish.format: lora, which is not rounded",
            file=sys.stderr,
        )
    return move
