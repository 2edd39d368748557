"""The student of a run as what is published is made of it: its files, its velocity, and the settings that say how."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from rtdmd.backbones import Backbone
from rtdmd.backbones.sampling import Velocity
from rtdmd.common.errors import UserError
from rtdmd.common.torch_setup import configure
from rtdmd.config import Params
from rtdmd.publish.adapter_file import read_adapter
from rtdmd.publish.export_folder import Source
from rtdmd.publish.lineage_record import header_of
from rtdmd.train.adapters import load_student

STUDENTS = ("train_acdmd", "train_rtdmd")
WEIGHTS = {name: f"results/{name}/generator.safetensors" for name in STUDENTS}


def student_source(
    params: Params, root: Path, paths: Mapping[str, Path], forms: tuple[str, ...], metadata: Mapping[str, str]
) -> Source:
    """The stage-two student, as evaluate judges it, on the base that it stands on. paths: stage -> its
    generator.safetensors. UserError where one is missing, or was imported."""
    lora = params.adapter.mode == "lora"
    for path in paths.values():
        if not path.is_file():
            raise UserError(f"{path}: no such file; `snakemake {path.parent.name}` makes it")
        if "imported" in header_of(path).get("__metadata__", {}):
            raise UserError(
                f"{path} was imported, not trained here, and the records beside it are another student's; the folder to"
                f" pass on is the one that `rtdmd import` wrote, and `rtdmd {path.parent.name}` trains a student here"
            )

    def student(backbone: Backbone) -> Velocity:
        return load_student(params, backbone, "train_rtdmd", root)

    device: torch.device = configure(params.run)
    return Source(
        model=params.model.of_student(),
        forms=forms,
        adapters={name: read_adapter(path) for name, path in paths.items()} if lora else {},
        full=None if lora else paths["train_rtdmd"],
        student=student,
        prompt=params.publish.prompt,
        called=params.publish.repo_id or "results/publish",
        threads=params.run.threads,
        seed=params.run.seed,
        metadata=metadata,
        root=root,
        device=device,
    )
