"""A run's folder: a small repository of its own, in which the ordinary stages run.

Code and data are links to this repository, prompts and text are the base run's of the same seed, and so is stage one
for a stage-two method. params.yaml and dvc.yaml are written out, so that `cd` there and any `rtdmd` command work.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from rtdmd.common.digests import share_digests
from rtdmd.common.files import write_atomic
from rtdmd.common.yaml_text import parse_yaml
from rtdmd.config import Params
from rtdmd.config.render import params_text
from rtdmd.study.plan import BASE, MODELS, SweepPlan, run_folder, run_params, stage_of

SHARED = ("prepare_prompts", "cache_teacher")
TRAINED = ("train_acdmd", "train_rtdmd")  # the second is trained on the first


def lay(root: Path, base: Params, plan: SweepPlan, run: str, seed: int) -> tuple[Path, Params]:
    """Make or refresh the folder of a run; returns it with the run's parameters. Files are rewritten only where their
    text changes, and nothing that a stage wrote is touched."""
    folder = run_folder(root, plan, run, seed)
    params = run_params(base, plan, run, seed)
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("rtdmd", "data"):
        link(folder / name, root / name)
    share_digests(folder, root)
    if run != BASE:
        shared = (*SHARED, "train_acdmd") if stage_of(run) == "train_rtdmd" else SHARED
        for name in shared:
            link(folder / "results" / name, run_folder(root, plan, BASE, seed) / "results" / name)
    write_new(folder / "params.yaml", params_text(params, f"rtdmd sweep run {run} {seed}"))
    pipeline = (root / "dvc.yaml").read_text(encoding="utf-8")
    write_new(folder / "dvc.yaml", pipeline_text(pipeline, MODELS[stage_of(run)]))
    return folder, params


def link(path: Path, target: Path) -> None:
    """A symbolic link at ``path``; one that points elsewhere is replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink() and path.readlink() != target.resolve():
        path.unlink()
    if not path.is_symlink():
        path.symlink_to(target.resolve())


def write_new(path: Path, text: str) -> None:
    """Write ``text`` unless it is there."""
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_atomic(path, text)


def pipeline_text(text: str, models: Sequence[str]) -> str:
    """dvc.yaml with an evaluation of these models alone: their grids, and the students that they and the page need."""
    tree: dict[str, Any] = parse_yaml(text, "dvc.yaml")
    evaluate = tree["stages"]["evaluate"]
    grids = [f"results/evaluate/grid_{model}.png" for model in models]
    evaluate["outs"] = [*(out for out in evaluate["outs"] if "/grid_" not in str(out)), *grids]
    needed = TRAINED[: max((TRAINED.index(model) + 1 for model in models if model in TRAINED), default=0)]
    for stage in (evaluate, tree["stages"]["report"]):
        stage["deps"] = [
            dep for dep in stage["deps"] if not dep.startswith("results/train_") or dep.split("/")[1] in needed
        ]
    return yaml.safe_dump(tree, sort_keys=False, width=10**6)
