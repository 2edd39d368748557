"""What base a checkpoint of others stands on: its own word, the shape of its layers, or the user's.

A wrong base of the same shape loads without a word and draws something else. The public code trains its FLUX.2
checkpoints on the step-distilled klein, and takes the base model for their teacher; both have the same layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rtdmd.common.errors import UserError
from rtdmd.common.pins import ask
from rtdmd.config import ModelParams
from rtdmd.publish.adapter import A, Adapter

Layout = tuple[int, int, int]  # joint blocks, single blocks, width of the attention
PUBLIC_CODE: dict[Layout, tuple[str, ...]] = {
    (24, 0, 1536): ("stabilityai/stable-diffusion-3-medium-diffusers", "stabilityai/stable-diffusion-3.5-medium"),
    (19, 38, 3072): ("black-forest-labs/FLUX.1-dev",),
    (5, 20, 3072): ("black-forest-labs/FLUX.2-klein-4B",),
    (8, 24, 4096): ("black-forest-labs/FLUX.2-klein-9B",),
}
"""Bases of the public code's checkpoints (generator_init_path of its configs), by the layers that they adapt."""


def layout_of(adapter: Adapter) -> Layout:
    """How many blocks of each kind an adapter reaches, and how wide their attention is (0 where it has none)."""
    numbers: dict[str, set[str]] = {"transformer_blocks": set(), "single_transformer_blocks": set()}
    for module in adapter.modules():
        kind, _, rest = module.partition(".")
        if kind in numbers:
            numbers[kind].add(rest.split(".")[0])
    first = adapter.tensors.get(f"transformer_blocks.0.attn.to_q{A}")
    width = 0 if first is None else first.shape[1]
    return len(numbers["transformer_blocks"]), len(numbers["single_transformer_blocks"]), width


def check_known_base(model: ModelParams, files: Sequence[Path], adapters: Mapping[str, Adapter]) -> None:
    """UserError where an adapter has the layers of a published checkpoint that stands on another model of the Hub than
    ``model.teacher``, the base that is known otherwise. A folder is taken at its word."""
    if model.is_hub_id:
        for file, adapter in zip(files, adapters.values(), strict=True):
            bases = PUBLIC_CODE.get(layout_of(adapter), (model.teacher,))
            if model.teacher not in bases:
                raise UserError(
                    f"{file}: its base is {' or '.join(bases)}, but {model.key} is {model.teacher}; set model.teacher,"
                    " or model.student, to its base"
                )


def check_base(model: ModelParams, files: Sequence[Path], adapters: Mapping[str, Adapter]) -> None:
    """UserError unless ``model.teacher`` is the base of every adapter, by the word of its file or by its layers.
    ``model``: the section on the student's base (`ModelParams.of_student`).

    It is asked for where no --base says it.
    """
    for file, adapter in zip(files, adapters.values(), strict=True):
        told = (adapter.config or {}).get("base_model_name_or_path")
        bases = (str(told),) if told else PUBLIC_CODE.get(layout_of(adapter), ())
        if bases == (model.teacher,):
            continue
        if len(bases) == 1:
            raise UserError(
                f"{file}: its base is {bases[0]}, but {model.key} is {model.teacher}; give a copy of its base with"
                f" --base FOLDER, or set {model.key}: {bases[0]} and {model.pin} to the commit that you"
                f" trust: {ask(bases[0])}"
            )
        which = f"its base is {' or '.join(bases)}" if bases else "does not say what its base is"
        raise UserError(
            f"{file}: {which}; name its base with --base FOLDER, or with --base {model.teacher} if that is it"
        )
