"""One run of the sweep: its stages in its folder, then its students over time, then `run.json`, which says it is done.

Everything resumes: a finished stage is not run again while its `resolved.json` fits, a killed training goes on from its
checkpoint.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from rtdmd.common.errors import UserError
from rtdmd.common.files import hash_of, read_json, remove, write_json
from rtdmd.common.sums import sum_in_order
from rtdmd.config import Params
from rtdmd.pipeline.dvc_yaml import params_values, read_pipeline
from rtdmd.pipeline.stage import stage_inputs
from rtdmd.plan.budget import cost, stage_one_iteration, stage_two_epoch
from rtdmd.report.over_time import read_curves
from rtdmd.study.history import LAST, chosen_epoch, judge_over_time, last_epoch, lay_last
from rtdmd.study.plan import BASE, SweepPlan, run_folder, stage_of
from rtdmd.study.workspace import SHARED, lay

DONE = "run.json"
CLOCK = ".rtdmd/seconds.json"


def run(root: Path, base: Params, plan: SweepPlan, name: str, seed: int) -> Path:
    """Run everything of one run that is not there yet; returns its `run.json`. UserError where the seed's base run is
    not done."""
    if name != BASE and not (run_folder(root, plan, BASE, seed) / DONE).is_file():
        raise UserError(f"run {BASE} of seed {seed} is not done; `rtdmd sweep run {BASE} {seed}` comes first")
    folder, params = lay(root, base, plan, name, seed)
    kind = stage_of(name)
    trained = [] if kind == "teacher" else [kind]
    for stage in [*(SHARED if name == BASE else ()), *trained, "evaluate"]:
        if not is_current(folder, params, stage):
            with clocked(folder, stage):
                import_module(f"rtdmd.stages.{stage}").run(folder)
    history = judge_over_time(folder, params, plan) if kind == "train_rtdmd" else []
    last = lay_last(folder, params) if kind == "train_rtdmd" else None
    if last is None:
        remove(folder / LAST)
    elif not is_current(last, params, "evaluate"):
        import_module("rtdmd.stages.evaluate").run(last)
    record = {"run": name, "seed": seed, "stage": kind, "seconds": read_clock(folder), "history": history}
    write_json(folder / DONE, record | spent(folder, params, kind) | {"code": code_of(folder, kind)})
    return folder / DONE


def is_current(folder: Path, params: Params, stage: str) -> bool:
    """True where the stage's outputs are there and were made with these parameters, this data and this code."""
    path = folder / "results" / stage / "resolved.json"
    if not path.is_file():
        return False
    entry = read_pipeline(folder)[stage]
    wanted: dict[str, Any] = params_values(params.model_dump(mode="json"), entry.params)
    found = read_json(path)
    there = found["params"] == wanted and all((folder / out).is_file() for out in entry.outs)
    return there and found["inputs"] == stage_inputs(folder, entry, params)


def code_of(folder: Path, kind: str) -> str:
    """Hash of the code that the run's students were trained with and judged by."""
    stages = ["evaluate"] if kind == "teacher" else [kind, "evaluate"]
    inputs: dict[str, str] = {}
    for stage in stages:
        resolved = read_json(folder / "results" / stage / "resolved.json")
        inputs |= {f"{stage}:{dep}": digest for dep, digest in resolved["inputs"].items() if dep.startswith("rtdmd/")}
    return hash_of(inputs)


@contextmanager
def clocked(folder: Path, stage: str) -> Iterator[None]:
    """Add the wall seconds of a stage to the run's clock, those of a killed try too where it could still be told."""
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds = read_clock(folder)
        seconds[stage] = round(seconds.get(stage, 0.0) + time.perf_counter() - start, 2)
        write_json(folder / CLOCK, seconds)


def read_clock(folder: Path) -> dict[str, float]:
    """Wall seconds of each stage so far."""
    found: dict[str, float] = read_json(folder / CLOCK) if (folder / CLOCK).is_file() else {}
    return found


def spent(folder: Path, params: Params, kind: str) -> dict[str, Any]:
    """What the training cost in forward passes of the generator: as planned, and with the images that the policy pass
    left out because their advantage was 0."""
    if kind == "teacher":
        return {"length": 0, "planned": 0.0, "spent": 0.0}
    planned = cost(params, kind)
    if kind == "train_acdmd":
        return {
            "length": params.train_acdmd.iterations,
            "planned": planned,
            "spent": planned,
            "unit": stage_one_iteration(params),
        }
    columns = read_curves(folder / "results" / kind / "curves.csv")[1]
    kept = [share for share in columns["frac_nonzero_advantage"] if share is not None]
    parts = stage_two_epoch(params, frac_nonzero=sum_in_order(kept) / len(kept))
    unit = sum_in_order(parts.values())
    epochs = last_epoch(folder)
    return {
        "length": epochs,
        "chosen": chosen_epoch(folder),
        "planned": planned,
        "spent": epochs * unit,
        "unit": unit,
        "parts": parts,
    }
