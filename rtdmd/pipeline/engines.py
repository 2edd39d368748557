"""The stages of DVC as Snakemake's rules need them: their files, and DVC's verdict on what is out of date.

Nothing is written in two places, and nothing is decided in two places. DVC resolves `dvc.yaml`; a dependency that is
a folder becomes its files, because Snakemake wants files. What has to run again is DVC's decision alone: every rule
has a mark among its inputs, `.rtdmd/stale/<stage>`, which is new when DVC would run the stage or one before it and
old otherwise. The times of code and data do not count (`ancient` in the rules), those of results are set right. So
the engines agree after any change, whichever of them ran last, in a fresh clone too. Importing this module imports
DVC (about half a second).
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

from dvc.dependency.param import ParamsDependency
from dvc.exceptions import DvcException
from dvc.repo import Repo

from rtdmd.common.errors import UserError
from rtdmd.common.files import tree_files, write_atomic
from rtdmd.config import Params
from rtdmd.pipeline.dvc_cache import refuse_truncated
from rtdmd.pipeline.dvc_yaml import missing_file, params_values, read_pipeline

MARKS = ".rtdmd/stale"
_OLD = 1_000_000_000  # September 2001: older than any output


@dataclass(frozen=True)
class Job:
    """One stage as a Snakemake rule sees it; paths are relative to the repository's root."""

    name: str
    description: str
    inputs: list[str]
    outputs: list[str]

    @property
    def mark(self) -> str:
        """The file whose time says whether the stage has to run again."""
        return f"{MARKS}/{self.name}"

    @property
    def benchmark(self) -> str:
        """Where Snakemake keeps the time and memory of the job."""
        return f"benchmarks/{self.name}.tsv"


def load_jobs(params: Params, root: Path = Path(".")) -> dict[str, Job]:
    """Every stage of the DVC pipeline in `root`, by name. UserError when `dvc.yaml` names an unknown parameter, a file
    that no stage makes is missing, or DVC's cache holds less than `dvc.lock` says."""
    _refuse_missing(root)
    refuse_truncated(root)
    tree = params.model_dump(mode="json")
    with Repo(str(root)) as repo:
        return {stage.name: _job(stage, tree, root.resolve()) for stage in repo.index.stages if stage.name}


def _refuse_missing(root: Path) -> None:
    """Snakemake takes the results of a stage whose input is gone as given, and runs what it can behind it."""
    pipeline = read_pipeline(root)
    made = {path for stage in pipeline.values() for path in stage.outs}
    for path in (path for stage in pipeline.values() for path in stage.deps):
        if path not in made and not (root / path).exists():
            raise UserError(missing_file(path, pipeline))


def _job(stage: Any, tree: dict[str, Any], root: Path) -> Job:
    """Split a resolved DVC stage's dependencies into files and parameters; the latter must exist."""
    files = [dep for dep in stage.deps if not isinstance(dep, ParamsDependency)]
    keys = tuple(key for dep in stage.deps if isinstance(dep, ParamsDependency) for key in dep.params)
    params_values(tree, keys)
    return Job(
        name=stage.name,
        description=stage.desc or stage.name,
        inputs=[path for dep in files for path in _files(Path(dep.fs_path), root)],
        outputs=[Path(out.fs_path).relative_to(root).as_posix() for out in stage.outs],
    )


def _files(path: Path, root: Path) -> list[str]:
    """The file itself, or the files of a folder (the folder's own name while it does not exist, so that it is
    missed)."""
    found = list(tree_files(path)) if path.is_dir() else [path]
    return [file.relative_to(root).as_posix() for file in found]


def mark_stale(jobs: Mapping[str, Job], root: Path = Path(".")) -> dict[str, str]:
    """Ask DVC what is out of date in `root` and make the times of marks and results say it; the reasons, by stage.

    A stage is stale when `dvc status` names it, or when one is that it reads from: the stages of
    `dvc repro --dry --force-downstream`. UserError when DVC cannot tell.
    """
    try:
        with Repo(str(root), _wait_for_lock=True) as repo:
            status = repo.status()
    except DvcException as error:
        raise UserError(f"dvc: {error}; `dvc status` says more") from error
    makers = {path: job.name for job in jobs.values() for path in job.outputs}
    before = {job.name: {makers[path] for path in job.inputs if path in makers} for job in jobs.values()}
    stale: dict[str, str] = {}
    for name in TopologicalSorter(before).static_order():
        if name in status:
            stale[name] = _reason(status[name])
        elif causes := before[name] & stale.keys():
            stale[name] = f"after {', '.join(sorted(causes))}"
        else:
            _settle(jobs[name], root, [path for path in jobs[name].inputs if path in makers])
        _set_mark(root / jobs[name].mark, stale.get(name))
    return stale


def _settle(job: Job, root: Path, results: list[str]) -> None:
    """Make what an up-to-date stage wrote no older than the `results` that it reads, whatever `dvc pull`,
    `dvc checkout`, the other engine or a copy of the folder did to the times. Snakemake looks at the benchmark too."""
    newest = max(((root / path).stat().st_mtime_ns for path in results), default=0)
    for path in (root / path for path in [*job.outputs, job.benchmark]):
        if path.exists() and path.stat().st_mtime_ns < newest:
            path.touch()


def _reason(changes: list[Any]) -> str:
    """One line of a stage's entry in DVC's status: words, or {words: {path: state}}."""
    texts = []
    for change in changes:
        for words, what in change.items() if isinstance(change, dict) else [(change, {})]:
            texts.append(f"{words}: {', '.join(what)}" if what else words)
    return "; ".join(texts)


def _set_mark(path: Path, reason: str | None) -> None:
    """A new mark tells the reason (and the time, so that no two are equal); an old one is empty."""
    write_atomic(path, f"{reason}\n{time.time_ns()}\n" if reason else "")
    if not reason:
        os.utime(path, (_OLD, _OLD))
