"""The student's base, ``model.student``: where it is one of its own, its transformer in the teacher's pipeline.

Text encoders, tokenizers, VAE and the few-step levels are the teacher's while a student is trained, sampled and judged.
So its base has to have the teacher's transformer by class, configuration and shapes, a VAE of the same latents and a
scheduler that sets the same levels: `check_student` compares them from configurations alone, before any weight is read.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from rtdmd.backbones.loading import load_part, part_classes, pipeline_parts, skeleton
from rtdmd.backbones.parts import latent_size
from rtdmd.backbones.snapshot import base_folder
from rtdmd.common.errors import UserError
from rtdmd.common.torch_setup import DTYPES, quiet_imports

if TYPE_CHECKING:
    from rtdmd.backbones.family import FamilyModule
    from rtdmd.config import ModelParams

LATENTS = ("scaling_factor", "shift_factor")  # entries of a VAE's configuration that change latents and no shape


def student_transformer(own: FamilyModule, model: ModelParams, root: Path, device: torch.device) -> nn.Module:
    """The transformer of ``model.student``, frozen, in ``model.dtype``, in evaluation mode; ``own``: the family's file.

    UserError where it cannot be had, or does not fit the teacher.
    """
    check_student(own, model, root)
    student = model.of_student()
    folder = base_folder(student, text=False, vae=False, root=root)
    kind = part_classes(own.PIPELINE, folder, model.family, student.key)["transformer"]
    module: nn.Module = load_part(kind, folder, "transformer", DTYPES[model.dtype], student.key)
    return module.requires_grad_(False).eval().to(device)


def check_student(own: FamilyModule, model: ModelParams, root: Path) -> None:
    """UserError, which begins with the student's setting, unless its base fits the teacher's: see the module. No weight
    is read; the bases of the Hub are downloaded as far as a training needs them."""
    student = model.of_student()
    bases = {one.key: base_folder(one, text=False, vae=False, root=root) for one in (model, student)}
    theirs, ours = (_parts(own, model.family, folder, key) for key, folder in bases.items())
    if type(theirs["transformer"]) is not type(ours["transformer"]) or type(theirs["vae"]) is not type(ours["vae"]):
        raise UserError(f"{student.key}: {student.teacher} has parts of other classes than {model.teacher}; {_ADVICE}")
    for part in ("transformer", "vae"):
        _refuse_shapes(part, theirs[part], ours[part], student.key)
        entries = LATENTS if part == "vae" else _public(theirs[part])
        for entry in entries:
            was = theirs[part].config.get(entry)
            now = ours[part].config.get(entry)
            if was != now:
                raise UserError(
                    f"{student.key}: its {part} has {entry}: {now} in its config.json, the teacher's {was}; {_ADVICE}"
                )
    levels = [_levels(own, one, bases[one.key], parts) for one, parts in ((model, theirs), (student, ours))]
    if levels[0] != levels[1]:
        was, now = (", ".join(f"{level:.4g}" for level in found) for found in levels)
        raise UserError(
            f"{student.key}: its scheduler sets the {model.num_steps} steps to {now}, the teacher's to {was}; {_ADVICE}"
        )


_ADVICE = (
    "a student's base may differ from the teacher in its weights only: name such a model, or set model.student: null"
)


def _parts(own: FamilyModule, family: str, folder: Path, key: str) -> dict[str, Any]:
    """Transformer and VAE without weights, on the meta device, and the scheduler."""
    classes = part_classes(own.PIPELINE, folder, family, key)
    parts: dict[str, Any] = {part: skeleton(classes[part], folder / part, key) for part in ("transformer", "vae")}
    parts["scheduler"] = load_part(classes["scheduler"], folder, "scheduler", torch.float32, key)
    return parts


def _public(module: Any) -> list[str]:
    """Names of the entries of a part's configuration, without those that tell of its making."""
    return sorted(name for name in module.config if not name.startswith("_"))


def _refuse_shapes(part: str, theirs: nn.Module, ours: nn.Module, key: str) -> None:
    """UserError where the tensors of a part do not have the names and shapes of the teacher's."""
    was = {name: tuple(tensor.shape) for name, tensor in theirs.state_dict().items()}
    now = {name: tuple(tensor.shape) for name, tensor in ours.state_dict().items()}
    odd = sorted(name for name in was.keys() | now.keys() if was.get(name) != now.get(name))
    if odd:
        here, there = (str(shapes.get(odd[0], "missing")) for shapes in (now, was))
        raise UserError(
            f"{key}: its {part} has another shape than the teacher's ({len(odd)} tensors differ, first {odd[0]}:"
            f" {here}, the teacher's {there}); {_ADVICE}"
        )


def _levels(own: FamilyModule, model: ModelParams, folder: Path, parts: dict[str, Any]) -> list[float]:
    """The few-step levels that a base's scheduler sets."""
    with quiet_imports():
        pipeline = own.PIPELINE(**(dict.fromkeys(pipeline_parts(own.PIPELINE)) | parts))
    size = latent_size(model, folder, own.latent_multiple(parts["transformer"].config))
    backbone = own.BACKBONE(pipeline, size, model.max_sequence_length, model.shift)
    levels: list[float] = backbone.sigmas(model.num_steps).tolist()
    return levels
