"""The published checkpoints that runs of the tables judge: their files, the base that they stand on, their folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rtdmd.common.errors import UserError
from rtdmd.common.hub import fetching
from rtdmd.config import Params
from rtdmd.experiments.settings import CHECKPOINTS, LOCAL, load_local, run_params
from rtdmd.published import find_run
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
    run = find_run(name)
    local = load_local(root)
    if run.checkpoint is None:
        raise UserError(f"experiment {name} has no published checkpoint; allowed: {', '.join(CHECKPOINTS)}")
    repository = run.checkpoint.repository
    where = local.checkpoint(run)
    if where.path is None:
        folder = _downloaded(run.checkpoint, name, where.revision)
        called = f"{repository}@{where.revision}"
    else:
        folder = root / where.path
        called = where.path
    for file in run.checkpoint.files:
        if not (folder / file).is_file():
            lacks = (
                f"revision: {repository} has no file {file} at {where.revision}; name another commit"
                if where.path is None
                else f"path: there is no file {folder / file}; name a copy of {repository}, or leave path out and give"
                " its revision"
            )
            raise UserError(f"{LOCAL}: checkpoints: {name}: {lacks}")
    files = {f"{called}/{file}": folder / file for file in run.checkpoint.files}
    return Wanted(run_params(run, local), files, run.checkpoint.alpha, Path(str(local.imported(run))))


def _downloaded(checkpoint: Checkpoint, name: str, revision: str) -> Path:
    from huggingface_hub import snapshot_download

    key = f"{LOCAL}: checkpoints: {name}"
    with fetching(key, f"{key}: revision", checkpoint.repository, revision, then=f"rtdmd import --experiment {name}"):
        return Path(snapshot_download(checkpoint.repository, revision=revision, allow_patterns=list(checkpoint.files)))
