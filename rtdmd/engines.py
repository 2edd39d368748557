"""The resolved stages of DVC, as Snakemake's rules need them: so that nothing is written in two places.

DVC resolves `dvc.yaml`; a dependency that is a folder becomes its files, because Snakemake does not see an edit
inside a folder. Importing this module imports DVC (about half a second).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dvc.dependency.param import ParamsDependency
from dvc.repo import Repo

from rtdmd.config import Params
from rtdmd.files import tree_files
from rtdmd.pipeline import params_values


@dataclass(frozen=True)
class Job:
    """One stage as a Snakemake rule sees it; paths are relative to the repository's root."""

    name: str
    description: str
    inputs: list[str]
    outputs: list[str]
    params: dict[str, Any]  # dotted key -> validated value


def load_jobs(params: Params, root: Path = Path(".")) -> dict[str, Job]:
    """Every stage of the DVC pipeline in `root`, by name. UserError when `dvc.yaml` names an unknown parameter."""
    tree = params.model_dump(mode="json")
    with Repo(str(root)) as repo:
        return {stage.name: _job(stage, tree, root.resolve()) for stage in repo.index.stages if stage.name}


def _job(stage: Any, tree: dict[str, Any], root: Path) -> Job:
    """Split a resolved DVC stage's dependencies into files and parameters."""
    files = [dep for dep in stage.deps if not isinstance(dep, ParamsDependency)]
    keys = tuple(key for dep in stage.deps if isinstance(dep, ParamsDependency) for key in dep.params)
    return Job(
        name=stage.name,
        description=stage.desc or stage.name,
        inputs=[path for dep in files for path in _files(Path(dep.fs_path), root)],
        outputs=[Path(out.fs_path).relative_to(root).as_posix() for out in stage.outs],
        params=params_values(tree, keys),
    )


def _files(path: Path, root: Path) -> list[str]:
    """The file itself, or the files of a folder (the folder's own name while it does not exist, so that it is
    missed)."""
    found = list(tree_files(path)) if path.is_dir() else [path]
    return [file.relative_to(root).as_posix() for file in found]
