"""A stage-two run over time: the EMA student of each kept checkpoint, judged on held-out prompts.

Each is evaluated by the ordinary stage, in a folder of its own (`at-<epoch>` inside the run's), with fewer images.
Where the automatic stop kept an earlier student than the last, the last one is also judged with all of them (`last`):
methods are compared by what they end in, and the stop's choice stands beside it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rtdmd.backbones import load_backbone
from rtdmd.common.files import load_tensors, read_json, save_tensors
from rtdmd.config import Params
from rtdmd.config.load import validate
from rtdmd.config.presets import merged
from rtdmd.config.render import params_text
from rtdmd.evaluate.names import first_suite
from rtdmd.pipeline.stage import RESOLVED, run_folder
from rtdmd.report.over_time import read_curves
from rtdmd.stages import evaluate
from rtdmd.study.plan import SweepPlan
from rtdmd.study.workspace import SHARED, link, write_new
from rtdmd.train.adapters import AdapterBank, stage_two_stacks
from rtdmd.train.engine.checkpoint import copy_indexed
from rtdmd.train.student_record import student_header

STAGE = "train_rtdmd"
LAST = "last"
FIGURES = ("strict", "clipscore", "frechet", "diversity", "clutter")


def judge_over_time(folder: Path, params: Params, plan: SweepPlan) -> list[dict[str, float]]:
    """Rows {epoch, figures} of the run's checkpoints, oldest first; none with ``plan.points`` 0."""
    if plan.points == 0:
        return []
    first = params.evaluate.suites[0]
    scorers = [reward.model_dump(mode="json") for reward in first.scorers(params.evaluate.rewards)]
    few = first.model_dump(mode="json") | {"images_per_tag": plan.point_images, "images_per_prompt": None}
    only = {"evaluate": {"suites": [few], "rewards": scorers}}
    fewer = validate(merged(params.model_dump(mode="json"), only), "a point of the run")
    rows = []
    for checkpoint in checkpoints(folder, params):
        epoch = int(checkpoint.name.removeprefix("step-"))
        place = lay_point(point_folder(folder, epoch), folder, fewer, checkpoint)
        metrics, parses = (place / "results" / "evaluate" / name for name in ("metrics.json", "parses.csv"))
        if not (metrics.is_file() and parses.is_file()):
            evaluate.run(place)
        rows.append({"epoch": float(epoch)} | figures(first_suite(read_json(metrics))[STAGE]))
    return rows


def point_folder(folder: Path, epoch: int) -> Path:
    """Where the student of an epoch of the run in ``folder`` is evaluated."""
    return folder / f"at-{epoch:05d}"


def figures(section: dict[str, Any]) -> dict[str, float]:
    """The figures of one model on one suite of metrics.json that the comparison shows, those that are there."""
    found = {name: section[name] for name in FIGURES if section.get(name) is not None}
    return {name: value["mean"] if isinstance(value, dict) else value for name, value in found.items()}


def checkpoints(folder: Path, params: Params) -> list[Path]:
    """The checkpoint folders of this run's training, oldest first."""
    every = params.train_rtdmd.save_every
    run_dir = run_folder(folder, STAGE, read_json(folder / "results" / STAGE / RESOLVED))
    found = {int(path.name.removeprefix("step-")): path for path in run_dir.glob("step-*")}
    if last_epoch(folder) not in found:
        return []
    return [found[epoch] for epoch in sorted(found) if epoch % every == 0 or epoch == last_epoch(folder)]


def last_epoch(folder: Path) -> int:
    x_name, columns = read_curves(folder / "results" / STAGE / "curves.csv")
    return int(columns[x_name][-1] or 0)


def chosen_epoch(folder: Path) -> int:
    """The epoch of the student that was kept: the automatic stop's choice, or the last."""
    about = load_tensors(folder / "results" / STAGE / "generator.safetensors")[1]
    return int(about.get("epoch", last_epoch(folder)))


def lay_last(folder: Path, params: Params) -> Path | None:
    """The folder in which the last student is evaluated as the kept one is; None where they are the same."""
    if chosen_epoch(folder) == last_epoch(folder):
        return None
    return lay_point(folder / LAST, folder, params, checkpoints(folder, params)[-1])


def lay_point(place: Path, folder: Path, params: Params, checkpoint: Path) -> Path:
    """``place``, ready for the evaluation of the EMA student of one of the run's checkpoints."""
    for name in ("rtdmd", "data", *(f"results/{stage}" for stage in (*SHARED, "train_acdmd"))):
        link(place / name, folder / name)
    write_new(place / "params.yaml", params_text(params, f"a student of {folder.name}"))
    write_new(place / "dvc.yaml", (folder / "dvc.yaml").read_text(encoding="utf-8"))
    target = place / "results" / STAGE / "generator.safetensors"
    if not target.is_file():
        write_student(target, folder, params, checkpoint)
    return place


def write_student(target: Path, root: Path, params: Params, checkpoint: Path) -> None:
    """A checkpoint's EMA student in the layout of the stage's output."""
    backbone = load_backbone(params.model, text=False, vae=False, root=root)
    bank = AdapterBank(backbone, params.adapter, stage_two_stacks(params), params.run.seed)
    copy_indexed(bank.trainable("rtdmd"), load_tensors(checkpoint / "generator_ema.safetensors")[0])
    target.parent.mkdir(parents=True, exist_ok=True)
    save_tensors(bank.state("rtdmd"), target, student_header(STAGE, params))
