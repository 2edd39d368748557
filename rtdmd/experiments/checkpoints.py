"""The published checkpoints that runs of the tables judge: their files, the base that they stand on, their folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rtdmd.common.errors import UserError
from rtdmd.common.hub import fetching
from rtdmd.config import Params
from rtdmd.experiments.settings import LOCAL, CheckpointFiles, load_local, run_params
from rtdmd.published import RUNS, find_run
from rtdmd.published.table import Checkpoint


@dataclass(frozen=True)
class Wanted:
    """What `rtdmd import --experiment` makes. ``files``: by what the record calls them, in the order of training."""

    params: Params
    files: dict[str, Path]
    alpha: float
    out: Path


def wanted(name: str, root: Path) -> Wanted:
    """The checkpoint of a run, downloaded as far as it is not here. UserError for a run without one, and where it
    cannot be had."""
    run, local = find_run(name), load_local(root)
    if run.checkpoint is None:
        known = ", ".join(name for name, other in RUNS.items() if other.checkpoint is not None)
        raise UserError(f"experiment {name} has no published checkpoint; allowed: {known}")
    where = local.checkpoint(run)
    if where.path is None:
        files = _downloaded(run.checkpoint, name, where.revision)
    else:
        files = _of_folder(run.checkpoint, name, where, root)
    return Wanted(run_params(run, local), files, run.checkpoint.alpha, Path(str(local.imported(run))))


def _of_folder(checkpoint: Checkpoint, name: str, where: CheckpointFiles, root: Path) -> dict[str, Path]:
    files = {f"{where.path}/{file}": root / str(where.path) / file for file in checkpoint.files}
    for path in files.values():
        if not path.is_file():
            raise UserError(
                f"{LOCAL}: checkpoints: {name}: path: there is no file {path}; name a copy of {checkpoint.repository},"
                " or leave path out and give its revision"
            )
    return files


def _downloaded(checkpoint: Checkpoint, name: str, revision: str) -> dict[str, Path]:
    from huggingface_hub import snapshot_download

    key = f"{LOCAL}: checkpoints: {name}"
    with fetching(key, f"{key}: revision", checkpoint.repository, revision, then=f"rtdmd import --experiment {name}"):
        folder = Path(
            snapshot_download(checkpoint.repository, revision=revision, allow_patterns=list(checkpoint.files))
        )
    files = {f"{checkpoint.repository}@{revision}/{file}": folder / file for file in checkpoint.files}
    for path in files.values():
        if not path.is_file():
            raise UserError(
                f"{key}: revision: {checkpoint.repository} has no file {path.relative_to(folder)} at {revision};"
                " name another commit"
            )
    return files
