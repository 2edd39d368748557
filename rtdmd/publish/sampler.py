"""A folder of weights that publish or import wrote, as a sampler: for `rtdmd sample --from` and the evaluation."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch

from rtdmd.backbones import load_backbone
from rtdmd.backbones.protocol import PUBLISHED
from rtdmd.common.digests import cached_tree_digest
from rtdmd.common.errors import UserError
from rtdmd.common.escape import printable
from rtdmd.config import ModelParams, Params
from rtdmd.evaluate.samples import Sampler
from rtdmd.publish.adapter_file import read_adapter
from rtdmd.publish.merge import MERGED, full_weights
from rtdmd.publish.recorded import Recorded, check_whole, recorded
from rtdmd.publish.reference import stacked_student, whole_student


def published_sampler(folder: Path, model: ModelParams, device: torch.device, root: Path) -> Sampler:
    """A published folder on ``model``: its adapter or, where it has none, its merged weights in model.dtype; few steps,
    no guidance. UserError where the weights are another model's, or not what passed the folder's gate."""
    check_whole(folder)
    backbone = load_backbone(model, device=device, root=root)
    if (folder / PUBLISHED).is_file():
        adapter = read_adapter(folder / PUBLISHED)
        print(f"{folder / PUBLISHED}: rank {adapter.rank}, alpha {adapter.alpha:g}", file=sys.stderr)
        velocity = stacked_student(backbone, {"published": adapter})
    else:
        state = backbone.transformer.state_dict()
        weights = full_weights(folder / MERGED, state, backbone.dtype, "make or download the folder again")
        velocity = whole_student(backbone, weights)
    return Sampler(
        backbone, velocity, backbone.sigmas(model.num_steps), model.eta, guided=False, shape=backbone.latent_shape()
    )


def imported_model(params: Params, root: Path) -> ModelParams:
    """Section model of the folder `evaluate.imported` as it records it, on its base alone and at the resolution of
    params.yaml, as the other models are. UserError where it has no record, or stands on a base that is neither of
    params.yaml's: its prompts' conditioning would be another model's."""
    key = "evaluate.imported"
    folder = root / str(params.evaluate.imported)
    found = recorded(folder)
    if found is None:
        raise UserError(f"{key}: {folder} has no record of its base; `rtdmd import` makes a folder that has")
    own = params.model
    found = replace(found, model=found.model.of_student())  # where a student had a base of its own, that is its base
    base = next((one for one in (own, own.of_student()) if _stands_on(found, one, root)), None)
    if base is None:
        named = " or ".join(dict.fromkeys((own.teacher, own.of_student().teacher)))
        stands = f"is based on {printable(found.model.teacher)}, revision {found.model.revision}"
        raise UserError(f"{key}: {folder} {stands}; allowed: a folder based on {named}, as section model has them")
    for name in ("family", "max_sequence_length"):
        if getattr(found.model, name) != getattr(own, name):
            raise UserError(
                f"{key}: {folder} was made with model.{name}: {getattr(found.model, name)}, params.yaml says"
                f" {getattr(own, name)}; set the same to judge it"
            )
    return found.model.model_copy(
        update={"teacher": base.teacher, "revision": base.revision, "resolution": own.resolution, "width": own.width}
    )


def _stands_on(found: Recorded, base: ModelParams, root: Path) -> bool:
    """Whether a folder was made on a base: the same commit of the Hub, or the same files wherever they lie."""
    if base.is_hub_id or found.base_sha256 is None:
        return (found.model.teacher, found.model.revision) == (base.teacher, base.revision)
    return found.base_sha256 == cached_tree_digest(root / base.teacher, root)
