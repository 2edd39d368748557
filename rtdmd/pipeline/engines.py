"""The stages of DVC as Snakemake's rules need them: their results, and DVC's verdict on what is out of date.

Nothing is written in two places, and nothing is decided in two places. DVC resolves `dvc.yaml`, and what has to run
again is DVC's decision alone: `stale_stages` are the stages that DVC would run, and the rules make Snakemake run these
(workflow/rules/common.smk). No file is written for it and no file's time is looked at, so the engines agree after any
change, whichever of them ran last, in a fresh clone and under a wrong clock too. Importing this module imports DVC
(about half a second).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

from dvc.dependency.param import ParamsDependency

from rtdmd.common.files import tree_files
from rtdmd.config import Params
from rtdmd.config.prompt_needs import check_prompts
from rtdmd.pipeline.dvc_cache import refuse_truncated
from rtdmd.pipeline.dvc_repo import opened
from rtdmd.pipeline.dvc_yaml import params_values, read_pipeline, refuse_missing
from rtdmd.pipeline.model_inputs import is_group, set_links
from rtdmd.pipeline.provenance import refuse_unreadable
from rtdmd.pipeline.shared_folder import refuse_unwritable

NAMED = 3  # paths that a reason names


@dataclass(frozen=True)
class Job:
    """One stage as a Snakemake rule sees it; paths are relative to the repository's root."""

    name: str
    description: str
    inputs: list[str]  # files: code, data, and results of other stages
    outputs: list[str]

    @property
    def benchmark(self) -> str:
        """Where Snakemake keeps the time and memory of the job."""
        return f"benchmarks/{self.name}.tsv"


def load_jobs(params: Params, root: Path = Path(".")) -> dict[str, Job]:
    """Every stage of the DVC pipeline in `root`, by name. UserError when `dvc.yaml` names an unknown parameter, a file
    that no stage makes is missing, or DVC's cache holds less than `dvc.lock` says."""
    refuse_unreadable(root)
    refuse_unwritable(root)
    check_prompts(params)
    _refuse_missing(root, params)
    refuse_truncated(root)
    tree = params.model_dump(mode="json")
    with opened(root) as repo:
        return {stage.name: _job(stage, tree, root.resolve()) for stage in repo.index.stages if stage.name}


def _refuse_missing(root: Path, params: Params) -> None:
    """Snakemake takes the results of a stage whose input is gone as given, and runs what it can behind it."""
    pipeline = read_pipeline(root)
    made = {path for stage in pipeline.values() for path in stage.outs}
    read = dict.fromkeys(path for stage in pipeline.values() for path in stage.deps if path not in made)
    if any(is_group(path) for path in read):
        set_links(root, params, groups=())
    refuse_missing(root, read, pipeline)


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


def stale_stages(jobs: Mapping[str, Job], root: Path = Path(".")) -> dict[str, str]:
    """What DVC says is out of date in `root`: the reasons, by stage, causes first.

    A stage is stale when `dvc status` names it, or when one is that it reads from: the stages of
    `dvc repro --dry --force-downstream`. UserError when DVC cannot tell.
    """
    with opened(root) as repo:
        status = repo.status()
    before = _sources(jobs)
    stale: dict[str, str] = {}
    for name in TopologicalSorter(before).static_order():
        if name in status:
            stale[name] = _reason(status[name])
        elif causes := before[name] & stale.keys():
            stale[name] = f"after {', '.join(sorted(causes))}"
    return stale


def with_readers(jobs: Mapping[str, Job], names: Iterable[str | None]) -> set[str]:
    """The stages among `names`, and all that read their results, directly or not."""
    before = _sources(jobs)
    found = jobs.keys() & set(names)
    for name in TopologicalSorter(before).static_order():
        if before[name] & found:
            found.add(name)
    return found


def _sources(jobs: Mapping[str, Job]) -> dict[str, set[str]]:
    """The stages whose results each stage reads."""
    makers = {path: job.name for job in jobs.values() for path in job.outputs}
    found = {}
    for job in jobs.values():
        found[job.name] = {makers[path] for path in job.inputs if path in makers}
    return found


def end_future(jobs: Mapping[str, Job], root: Path = Path(".")) -> None:
    """Give the time of now to results and benchmarks that are dated later (a wrong clock, an archive): Snakemake fails
    a job one of whose inputs is newer than what it has just made. A link's own time is set, never its target's."""
    now = time.time()
    for path in (root / path for job in jobs.values() for path in [*job.outputs, job.benchmark]):
        if os.path.lexists(path) and path.lstat().st_mtime > now:
            os.utime(path, follow_symlinks=False)


def _reason(changes: list[Any]) -> str:
    """One line of a stage's entry in DVC's status: words, or {words: {path: state}}."""
    texts = []
    for change in changes:
        for words, what in change.items() if isinstance(change, dict) else [(change, {})]:
            named = [*what][:NAMED]
            more = [f"{len(what) - NAMED} more"] if len(what) > NAMED else []
            texts.append(f"{words}: {', '.join([*named, *more])}" if what else words)
    return "; ".join(texts)
