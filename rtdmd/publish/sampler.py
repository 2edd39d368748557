"""A folder of weights that publish or import wrote, read back: what it records of its model, and a sampler.

For `rtdmd sample --from`, `rtdmd import` and the evaluation of `evaluate.imported`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from rtdmd.backbones import load_backbone
from rtdmd.backbones.protocol import PUBLISHED
from rtdmd.common.digests import cached_tree_digest
from rtdmd.common.errors import UserError
from rtdmd.common.escape import printable
from rtdmd.common.files import read_json, sha256_file
from rtdmd.common.model_files import check_files, teacher_files
from rtdmd.config import ModelParams, Params
from rtdmd.config.load import validate_as
from rtdmd.evaluate.samples import Sampler
from rtdmd.publish.adapter import read_adapter
from rtdmd.publish.merge import CONFIG, MERGED, full_weights
from rtdmd.publish.records import GATE, PROVENANCE, record_of_weights
from rtdmd.publish.reference import stacked_student, whole_student


@dataclass(frozen=True)
class Recorded:
    """Section `model` as it was when a folder's weights were made, and the SHA-256 of a local base."""

    where: str  # the file that tells it
    model: ModelParams
    base_sha256: str | None

    def on(self, base: str | None, root: Path) -> ModelParams:
        """The model on the student's base, or on a copy of that in the folder ``base``. UserError where it is not here,
        or is another one."""
        own = self.model.of_student()
        model = own if base is None else with_base(own, base, root)
        if model.is_hub_id:
            return model
        teacher = printable(model.teacher)
        if not (root / model.teacher).is_dir():
            raise UserError(
                f"{self.where}: was made on {teacher}, which is not here; name a copy of it with --base FOLDER"
            )
        if self.base_sha256 is not None and cached_tree_digest(root / model.teacher, root) != self.base_sha256:
            raise UserError(
                f"{self.where}: was made on another base than the one in {teacher} (their SHA-256 differ); name a"
                " copy of the right one with --base FOLDER"
            )
        return model


def recorded(path: Path) -> Recorded | None:
    """The record of a published folder (provenance.json, or the header of its weights), or of a file of weights; None
    where there is none. UserError for a record that is not one of ours."""
    where = path / PROVENANCE
    record = read_json(where) if where.is_file() else None
    for file in [path] if path.is_file() else [path / PUBLISHED, path / MERGED]:
        if record is None and file.is_file() and file.suffix == ".safetensors":
            where = file
            record = record_of_weights(file)
    if record is None:
        return None
    settings = record.get("settings")
    section = settings.get("model") if isinstance(settings, dict) else None
    if not isinstance(section, dict):
        raise UserError(
            f"{where}: not a record of this package: it has no settings.model; make or download the folder again"
        )
    model = validate_as(ModelParams, section, f"{where}: settings.model", "make the folder again")
    base = record.get("teacher" if model.student is None else "student")
    return Recorded(str(where), model, base.get("sha256") if isinstance(base, dict) else None)


def check_whole(folder: Path) -> None:
    """UserError where the weights of a published folder are not what passed its gate, as `gate.json` says.

    Weights hold no checksum of their own: a flipped bit would be sampled.
    """
    if not (folder / GATE).is_file():
        return
    passed = read_json(folder / GATE).get("sha256")
    for name in (PUBLISHED, MERGED, CONFIG):
        known = passed.get(name) if isinstance(passed, dict) else None
        if (folder / name).is_file() and known != sha256_file(folder / name):
            raise UserError(f"{folder / name} is not what passed the gate ({GATE}); make or download the folder again")


def with_base(model: ModelParams, base: str, root: Path) -> ModelParams:
    """A section on the student's base with another base: ``base`` is model.teacher itself, or a folder. UserError where
    it is neither.

    A folder of two parts is written ./a/b in the section, or it would name a repository.
    """
    if base == model.teacher:
        return model
    if not (root / base / "model_index.json").is_file():
        raise UserError(f"--base {base}: neither {model.key} ({model.teacher}) nor a folder of a diffusers pipeline")
    check_files(root / base, teacher_files(root / base, "--base"), "--base")
    name = Path(base).as_posix()
    written = name if Path(base).is_absolute() or name.startswith(".") else f"./{name}"
    return model.model_copy(update={"teacher": written, "revision": None})


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
