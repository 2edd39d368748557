"""Stage publish: a model folder that plain diffusers loads, with its model card. Nothing leaves this machine.

Run `rtdmd publish`: it reads both students' adapters and the evaluation and writes results/publish/: the two adapters
as one LoRA file, a scheduler that runs the trained levels, README.md (the model card), samples.png and provenance.json.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rtdmd.backbones import load_backbone
from rtdmd.backbones.protocol import PUBLISHED
from rtdmd.backbones.snapshot import TEXT_PARTS, model_index, teacher_folder
from rtdmd.config import ModelParams, Params
from rtdmd.errors import UserError
from rtdmd.files import read_json, sha256_file, write_atomic, write_json
from rtdmd.provenance import git_commit, hash_of, package_versions
from rtdmd.publish.card import SAMPLES, Published, model_card
from rtdmd.publish.compose import Adapter, compose, read_adapter
from rtdmd.publish.export import write_lora
from rtdmd.publish.scheduler import scheduler_config
from rtdmd.stage import Stage, open_stage
from rtdmd.torch_setup import configure

STUDENTS = ("train_acdmd", "train_rtdmd")
RENOISE_FROM = 0.5  # trained eta from which diffusers' re-noising (eta = 1) is nearer than its Euler step (eta = 0)


def run(root: Path = Path(".")) -> None:
    """Run the stage in the repository at ``root``."""
    with open_stage("publish", root) as stage:
        check_supported(stage.params)
        configure(stage.params.run)
        adapter = stacked_adapter(stage)
        write_lora(adapter, stage.output(PUBLISHED))
        model = stage.params.model
        sigmas = load_backbone(model, vae=False, root=root).sigmas(model.num_steps).tolist()
        stochastic = model.eta >= RENOISE_FROM
        write_json(stage.output("scheduler/scheduler_config.json"), scheduler_config(sigmas, stochastic))
        metrics = read_json(stage.input("results/evaluate/metrics.json"))
        record = provenance(stage, adapter, sigmas, sha256_file(stage.output(PUBLISHED)))
        write_json(stage.output("provenance.json"), record)
        write_atomic(stage.output(SAMPLES), stage.input("results/evaluate/contact_sheet.png").read_bytes())
        card = model_card(
            Published(model, sigmas, stochastic, absent_parts(model, root), adapter.rank, metrics, record)
        )
        write_atomic(stage.output("README.md"), card)


def check_supported(params: Params) -> None:
    """UserError for what publish cannot do yet, before anything is read."""
    if not params.publish.dry_run:
        raise UserError(
            "publish.dry_run: false: uploading is not available yet; set it to true and upload results/publish yourself"
        )
    if params.adapter.mode != "lora":
        raise UserError(f"adapter.mode: {params.adapter.mode}: publish writes LoRA adapters only; allowed for it: lora")


def absent_parts(model: ModelParams, root: Path) -> list[str]:
    """Text parts that the teacher's pipeline names and does not have (SD3 without T5)."""
    index = model_index(teacher_folder(model, text=False, vae=False, root=root))
    return [part for part, value in index.items() if value == [None, None] and part.startswith(TEXT_PARTS)]


def stacked_adapter(stage: Stage) -> Adapter:
    """Stage two's adapter on top of stage one's, as one."""
    return compose([read_adapter(stage.input(f"results/{name}/generator.safetensors")) for name in STUDENTS])


def provenance(stage: Stage, adapter: Adapter, sigmas: list[float], weights_sha256: str) -> dict[str, Any]:
    """Where the folder comes from: code, the settings and inputs of the stages behind it, and versions."""
    lineage = {name: read_json(stage.input(f"results/{name}/resolved.json")) for name in (*STUDENTS, "evaluate")}
    settings = {key: value for record in lineage.values() for key, value in record["params"].items()}
    return {
        "git_commit": git_commit(stage.root),
        "settings": settings,
        "settings_sha256": hash_of(settings),
        "inputs": {**{name: record["inputs"] for name, record in lineage.items()}, "publish": stage.inputs},
        "adapter": {"rank": adapter.rank, "alpha": adapter.alpha, "sha256": weights_sha256, "stages": list(STUDENTS)},
        "sampling": {"sigmas": sigmas, "eta": stage.params.model.eta},
        "versions": package_versions(),
    }
