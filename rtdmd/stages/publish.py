"""Stage publish: a model folder that plain diffusers loads, with its model card. Nothing leaves this machine.

Run `rtdmd publish`: it reads both students' weights and the evaluation and writes results/publish/: the weights as one
LoRA file, as a whole transformer, or both (publish.format), a scheduler that runs the trained levels, README.md (the
model card) with its pictures, provenance.json, and gate.json. The folder must pass the gate (rtdmd/publish/gate.py): a
fresh process with released diffusers runs the card's Python and compares what it loads with the student in memory.
`rtdmd upload` sends the folder.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from rtdmd.backbones import Backbone
from rtdmd.backbones.sampling import Velocity
from rtdmd.common.errors import UserError
from rtdmd.common.files import read_json, write_atomic, write_json
from rtdmd.common.torch_setup import configure
from rtdmd.config import Params
from rtdmd.evaluate.names import STUDENT
from rtdmd.pipeline.stage import Stage, open_stage, resolved
from rtdmd.publish.adapter_file import read_adapter
from rtdmd.publish.card_data import SAMPLES
from rtdmd.publish.export_folder import FILES, PROVENANCE, Made, Source, check_forms, finish, make_weights
from rtdmd.publish.gate import table
from rtdmd.publish.lineage_record import header_of, lineage_record, weights_metadata
from rtdmd.train.adapters import load_student

STUDENTS = ("train_acdmd", "train_rtdmd")
WEIGHTS = {name: f"results/{name}/generator.safetensors" for name in STUDENTS}


def run(root: Path = Path(".")) -> None:
    """Run the stage in the repository at ``root``."""
    with open_stage("publish", root) as stage:
        forms = check_forms(stage.params.publish.format, stage.params.adapter.mode)
        check_outputs(stage, forms)
        lineage = {name: read_json(stage.input(f"results/{name}/resolved.json")) for name in STUDENTS}
        identities = {"train_rtdmd": read_json(stage.input("results/train_rtdmd/scorers.json"))}
        paths = {name: stage.input(path) for name, path in WEIGHTS.items()}
        metadata = weights_metadata(lineage_record(lineage, identities))
        source = student_source(stage.params, root, paths, forms, metadata)
        made = make_weights(source, stage.output)
        lineage |= {"evaluate": read_json(stage.input("results/evaluate/resolved.json")), "publish": resolved(stage)}
        metrics = read_json(stage.input("results/evaluate/metrics.json"))
        record = {
            **lineage_record(lineage, identities | {"evaluate": metrics["scorers"]}),
            **what_was_made(made, forms, stage.params.model.eta),
        }
        write_json(stage.output(PROVENANCE), record)
        write_atomic(stage.output(SAMPLES), stage.input("results/evaluate/contact_sheet.png").read_bytes())
        told = {
            "settings": record["settings"],
            "settings_sha256": record["settings_sha256"],
            "metrics": metrics if STUDENT in metrics else {},  # evaluate.models may leave the student out
            "datasets": stage.params.publish.datasets,
        }
        print(table(finish(source, made, stage.output, told)["forms"]), file=sys.stderr)


def check_outputs(stage: Stage, forms: tuple[str, ...]) -> None:
    """dvc.yaml lists the files of publish.format and no others; UserError that names the lines to change."""
    declared = set(stage.entry.outs)
    for form, names in FILES.items():
        for name in names:
            path = f"results/publish/{name}"
            if (form in forms) != (path in declared):
                what = "add it to" if form in forms else "take it from"
                raise UserError(
                    f"publish.format: {stage.params.publish.format}: {what} the outs of publish in dvc.yaml: {path}"
                )


def student_source(
    params: Params, root: Path, paths: Mapping[str, Path], forms: tuple[str, ...], metadata: Mapping[str, str]
) -> Source:
    """The stage-two student, as evaluate judges it. paths: stage -> its generator.safetensors. UserError where one is
    missing, or was imported."""
    lora = params.adapter.mode == "lora"
    for path in paths.values():
        if not path.is_file():
            raise UserError(f"{path}: no such file; `snakemake {path.parent.name}` makes it")
        if "imported" in header_of(path).get("__metadata__", {}):
            raise UserError(
                f"{path} was imported, not trained here, and the records beside it are another student's; the folder to"
                f" hand on is the one that `rtdmd import` wrote, and `rtdmd {path.parent.name}` trains a student here"
            )

    def student(backbone: Backbone) -> Velocity:
        return load_student(params, backbone, "train_rtdmd", root)

    device: torch.device = configure(params.run)
    return Source(
        model=params.model,
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


def what_was_made(made: Made, forms: tuple[str, ...], eta: float) -> dict[str, Any]:
    """The weights' forms, and how they are sampled, for provenance.json."""
    adapter = made.adapter
    return {
        "forms": list(forms),
        "adapter": None
        if adapter is None
        else {"rank": adapter.rank, "alpha": adapter.alpha, "stages": list(STUDENTS)},
        "sampling": {"sigmas": made.sigmas, "eta": eta},
    }
