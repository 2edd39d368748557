"""The harness around every stage: validated parameters, declared inputs, all-or-nothing outputs.

    with open_stage("train_acdmd", root) as stage:
        prompts = stage.input("results/prepare_prompts/train.jsonl")
        save_tensors(weights, stage.output("generator.safetensors"))

What a stage may read and must write is declared in `dvc.yaml`, nowhere else. Outputs are written under temporary
names and renamed together at the end, `resolved.json` last; after an error none of them changes. State for resuming
lives in `stage.run_dir`, a folder named by the hash of parameters, inputs and code version, and never among the
outputs.
"""

from __future__ import annotations

import fcntl
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import rtdmd
from rtdmd.common.digests import cached_tree_digest
from rtdmd.common.errors import UserError
from rtdmd.common.files import fsync_path, hash_of, lock_file, remove, write_json
from rtdmd.common.signals import defer_signals
from rtdmd.config import Params, load_params
from rtdmd.config.prompt_needs import check_prompts
from rtdmd.pipeline.dvc_cache import refuse_damaged
from rtdmd.pipeline.dvc_yaml import StageEntry, covers, missing_file, params_values, read_pipeline, refuse_missing
from rtdmd.pipeline.model_inputs import check_local, groups_of_run, hash_models, is_group, require_pins, set_links
from rtdmd.pipeline.provenance import package_versions

RESOLVED = "resolved.json"


@dataclass(frozen=True)
class Stage:
    """An open stage. `params` is the whole validated tree, as it was when the stage started."""

    name: str
    root: Path
    params: Params
    entry: StageEntry
    values: dict[str, Any]  # dotted key -> value, of the declared params
    inputs: dict[str, str]  # declared dependency, or model that params.yaml names -> SHA-256
    run_dir: Path  # persistent, for resuming; not an output
    _pipeline: dict[str, StageEntry] = field(repr=False)
    _partial: Path = field(repr=False)

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.params.run.seed

    def input(self, path: str) -> Path:
        """The path of a declared dependency (or of a file inside one); UserError when undeclared or missing."""
        if not any(covers(dep, path) for dep in self.entry.deps):
            raise UserError(
                f"dvc.yaml: stage {self.name} reads {path} without declaring it; add it to the stage's deps"
            )
        found = self.root / path
        if not found.exists():
            raise UserError(missing_file(path, self._pipeline))
        return found

    def output(self, name: str) -> Path:
        """Where to write the declared output `results/<stage>/<name>`: a temporary path, renamed when the stage ends
        well."""
        if name == RESOLVED:
            raise UserError(f"{RESOLVED} is written by the stage harness, not by stage {self.name}")
        declared = f"results/{self.name}/{name}"
        if declared not in self.entry.outs:
            raise UserError(
                f"dvc.yaml: stage {self.name} writes {declared} without declaring it; add it to the stage's outs"
            )
        path = self._partial / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


@contextmanager
def open_stage(name: str, root: Path = Path(".")) -> Iterator[Stage]:
    """Open stage `name` of `root/dvc.yaml`.

    On a clean end every declared output must have been written, and the declared parameters, data and code must be
    what they were at the start; the outputs are then put in place. UserError otherwise, and the results folder is as
    before.
    """
    pipeline = read_pipeline(root)
    if name not in pipeline:
        raise UserError(f"dvc.yaml: no stage {name!r}; it has {', '.join(pipeline)}")
    entry = pipeline[name]
    params = load_params(root / "params.yaml")
    values = params_values(params.model_dump(mode="json"), entry.params)
    inputs = _hash_inputs(root, entry, pipeline, params)
    with _only_one(root, name), _partial_folder(root / "results" / name) as partial:
        run_dir = run_folder(root, name, {"params": values, "inputs": inputs, "versions": {"rtdmd": rtdmd.__version__}})
        run_dir.mkdir(parents=True, exist_ok=True)
        stage = Stage(name, root, params, entry, values, inputs, run_dir, pipeline, partial)
        yield stage
        _check_unchanged(stage)
        with defer_signals():
            _put_in_place(stage)


def _hash_inputs(root: Path, entry: StageEntry, pipeline: dict[str, StageEntry], params: Params) -> dict[str, str]:
    """Hash of every declared dependency, and of the models that params.yaml names where the stage reads them."""
    if any(is_group(dep) for dep in entry.deps):
        groups = groups_of_run(params, entry.name)
        require_pins(params, groups)
        check_prompts(params, entry.name)
        check_local(root, params, groups)
        set_links(root, params, groups)
    refuse_missing(root, entry.deps, pipeline)
    refuse_damaged(root, entry.deps)
    return stage_inputs(root, entry, params)


def stage_inputs(root: Path, entry: StageEntry, params: Params) -> dict[str, str]:
    """SHA-256 by dependency as resolved.json has them: a folder of links stands for the models that it leads to."""
    inputs: dict[str, str] = {}
    for dep in entry.deps:
        if is_group(dep):
            inputs |= hash_models(root, params, PurePosixPath(dep).name)
        else:
            inputs[dep] = cached_tree_digest(root / dep, root)
    return inputs


def run_folder(root: Path, name: str, settings: dict[str, Any]) -> Path:
    """Where the run of stage `name` with these settings (what its `resolved.json` holds) keeps its state."""
    version = settings["versions"]["rtdmd"]
    key = hash_of({"params": settings["params"], "inputs": settings["inputs"], "version": version})
    return root / ".rtdmd" / "runs" / f"{name}-{key[:16]}"


@contextmanager
def _only_one(root: Path, name: str) -> Iterator[None]:
    """Two runs of one stage in one folder would tread on each other's state: the second is refused at once."""
    path = root / ".rtdmd" / "locks" / name
    with lock_file(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"stage {name} is already running in {root.resolve()}; wait for it or stop it") from error
        yield


@contextmanager
def _partial_folder(results: Path) -> Iterator[Path]:
    """A temporary folder beside the outputs (same file system, so that renaming is atomic); gone afterwards in every
    case."""
    results.mkdir(parents=True, exist_ok=True)
    for stale in results.glob(".partial-*"):  # left by a killed run; the lock says that none is alive
        remove(stale)
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=results))
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _check_unchanged(stage: Stage) -> None:
    """DVC records parameters, data and code after the run: what it records must be what was used."""
    now = params_values(load_params(stage.root / "params.yaml").model_dump(mode="json"), stage.entry.params)
    changed = [key for key, value in stage.values.items() if now[key] != value]
    if changed:
        raise UserError(
            f"params.yaml changed during the run ({', '.join(changed)}); nothing was written, run {stage.name} again"
        )
    here = stage_inputs(stage.root, stage.entry, stage.params)
    for dep, digest in stage.inputs.items():
        if here[dep] != digest:
            raise UserError(f"{dep} changed during the run; nothing was written, run {stage.name} again")


def _put_in_place(stage: Stage) -> None:
    """Flush and rename every declared output; the settings (`resolved.json`) come last."""
    names = [out.removeprefix(f"results/{stage.name}/") for out in stage.entry.outs]
    write_json(stage._partial / RESOLVED, resolved(stage))
    absent = [name for name in names if not (stage._partial / name).is_file()]
    if absent:
        raise UserError(f"stage {stage.name} ended without writing {', '.join(absent)} (declared in dvc.yaml)")
    results = stage.root / "results" / stage.name
    for name in sorted(set(names) | {RESOLVED}, key=lambda name: (name == RESOLVED, name)):
        (results / name).parent.mkdir(parents=True, exist_ok=True)
        (stage._partial / name).chmod(0o644)
        fsync_path(stage._partial / name)
        (stage._partial / name).replace(results / name)
    fsync_path(results)
    print(f"{stage.name}: wrote {', '.join(names)} in {results}", file=sys.stderr)


def resolved(stage: Stage) -> dict[str, Any]:
    """What `resolved.json` holds: parameters, input hashes, versions. The same run gives the same bytes (no time,
    host or commit)."""
    return {
        "stage": stage.name,
        "params": stage.values,
        "inputs": stage.inputs,
        "versions": package_versions(),
    }
