"""Stage report: one self-contained HTML page from the results of the other stages.

Run `rtdmd report`: it reads the pictures, figures, curves and settings under results/ and writes
results/report/index.html, which needs nothing else: pictures, charts, style and script are inside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rtdmd.common.files import hash_of, read_json, sha256_file, write_atomic
from rtdmd.pipeline.dvc_yaml import covers
from rtdmd.pipeline.provenance import last_commit
from rtdmd.pipeline.stage import Stage, open_stage
from rtdmd.report import over_time, sections
from rtdmd.report.html import page
from rtdmd.report.published import run_sections
from rtdmd.report.run_path import PathFiles

TRAINING = {"train_acdmd": "Stage one (AC-DMD)", "train_rtdmd": "Stage two (RTDMD)"}
UNITS = {"train_acdmd": "iteration", "train_rtdmd": "epoch"}


def run(root: Path = Path(".")) -> None:
    """Run the stage in the repository at ``root``."""
    with open_stage("report", root) as stage:
        write_atomic(stage.output("index.html"), build(stage))


def build(stage: Stage) -> str:
    """The page."""
    metrics = read_json(stage.input("results/evaluate/metrics.json"))
    trained = [name for name in TRAINING if f"results/{name}/curves.csv" in stage.entry.deps]
    resolved = {name: read_json(stage.input(f"results/{name}/resolved.json")) for name in (*trained, "evaluate")}
    curves = {}
    watched = {}
    logs = {}
    for name in trained:
        title = TRAINING[name]
        curves[title] = stage.input(f"results/{name}/curves.csv")
        watched[title] = stage.input(f"results/{name}/watched.csv"), stage.input(f"results/{name}/watched_parses.csv")
        logs[title] = stage.input(f"results/{name}/image_log.zip"), UNITS[name]
    experiment = stage.params.report.experiment
    facts = {
        "Git commit": last_commit(stage.root, _sources(stage, resolved)) or "not a Git checkout",
        "Hash of the settings": hash_of({name: values["params"] for name, values in resolved.items()}),
        "Hash of the figures": sha256_file(stage.input("results/evaluate/metrics.json")),
    }
    evaluated = resolved["evaluate"]["params"]
    path_files = None
    if "train_rtdmd" in trained:
        files = (stage.input("results/train_rtdmd/watched_parses.csv"), stage.input("results/evaluate/parses.csv"))
        section = resolved["train_rtdmd"]["params"]["train_rtdmd"]
        epochs = None if section["validation"]["every"] else section["epochs"]
        path_files = PathFiles(*files, evaluated["run.seed"], epochs)
    parts = [
        sections.samples(stage.input("results/evaluate/contact_sheet.png")),
        *sections.suite_sections(metrics, evaluated["model"]["eta"], path_files),
    ]
    if experiment is not None:
        parts += run_sections(experiment, metrics)
    parts += [
        over_time.curves(curves),
        over_time.watched(watched),
        over_time.image_log(logs),
        sections.settings(resolved),
        sections.provenance(resolved, read_json(stage.input("results/prepare_prompts/summary.json")), facts),
    ]
    return page(stage.params.report.title, sections.lead(metrics), parts)


def _sources(stage: Stage, resolved: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Code and data behind the page; no results, so that the page is the same in the commit that holds them."""
    paths = {*stage.entry.deps, *(path for values in resolved.values() for path in values["inputs"])}
    return sorted(path for path in paths if covers(".", path) and not covers("results", path))
