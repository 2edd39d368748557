"""What a folder of weights records of the model that it was made with: the base, and how it is sampled."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rtdmd.backbones.protocol import PUBLISHED
from rtdmd.common.digests import cached_tree_digest
from rtdmd.common.errors import UserError
from rtdmd.common.escape import printable
from rtdmd.common.files import read_json, sha256_file
from rtdmd.common.model_files import check_files, teacher_files
from rtdmd.config import ModelParams
from rtdmd.config.load import validate_as
from rtdmd.publish.lineage_record import record_of_weights
from rtdmd.publish.merge import CONFIG, MERGED

PROVENANCE = "provenance.json"
GATE = "gate.json"


@dataclass(frozen=True)
class Recorded:
    """Section `model` as it was when the weights were made, and the SHA-256 of a local base."""

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
    files = [path] if path.is_file() else [path / PUBLISHED, path / MERGED]
    record: dict[str, Any] | None = None
    where = path / PROVENANCE
    if where.is_file():
        record = read_json(where)
    for file in files:
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
    section = {"student": None, "width": None, "shift": None} | section  # records of before there were these
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
