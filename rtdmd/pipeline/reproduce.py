"""Make the committed results again from scratch, and compare every output with the hash in dvc.lock.

The checkout's commit is cloned, DVC runs its stages there with neither cache nor run cache, and each output is hashed.
Where the bytes differ, the recorded file is looked for (in the checkout, its cache, its commit) to say how far apart
they are: see rtdmd/pipeline/distance.py.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rtdmd.common.errors import RtdmdError, UserError
from rtdmd.common.processes import QUESTION_SECONDS, limited
from rtdmd.pipeline.distance import distance
from rtdmd.pipeline.dvc_cache import object_path
from rtdmd.pipeline.dvc_repo import cache_folder
from rtdmd.pipeline.lineage import Step, behind, md5_like_dvc, read_lock
from rtdmd.pipeline.provenance import is_shallow

MISSING = "missing"
CLONE_SECONDS = 3600.0
"""A repository with large committed results, over a network file system, is cloned in minutes."""
_HEADER = ("stage", "output", "recorded", "here", "equal")


@dataclass(frozen=True)
class Row:
    """One output: its hash in dvc.lock and that of the new run, and where they differ how far apart the files are."""

    stage: str
    path: str
    recorded: str
    here: str
    words: str = ""
    within: bool | None = None

    @property
    def equal(self) -> bool:
        """True when the bytes are those that dvc.lock records."""
        return self.recorded == self.here


def reproduce(source: Path, folder: Path, stages: Sequence[str] = ()) -> list[Row]:
    """Clone the commit of `source` into `folder`, run its stages (`stages` and what they need, or all), compare.

    UserError when there is nothing committed to compare with; RtdmdError when a stage fails.
    """
    folder, recorded = clone(source, folder)
    unknown = [name for name in stages if name not in recorded]
    if unknown:
        raise UserError(f"dvc.lock of the commit: no stage {', '.join(unknown)}; it has {', '.join(recorded)}")
    wanted = {step.name for name in stages or recorded for step in behind(name, recorded)}
    run_all(folder, stages)
    return [row for name, step in recorded.items() if name in wanted for row in compare(step, source, folder)]


def clone(source: Path, folder: Path) -> tuple[Path, dict[str, Step]]:
    """A clone at `folder` of the repository that `source` is, or lies in; where in it `source` is, and the stages that
    the commit's dvc.lock records."""
    if is_shallow(source):
        raise UserError("the clone is shallow, and results name commits that it lacks; `git fetch --unshallow` first")
    with limited(f"it asks about {source.resolve()}: when it answers there, run this command again"):
        inside = subprocess.run(
            ["git", "rev-parse", "--show-toplevel", "--show-prefix"],
            cwd=source,
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",  # as Python names such folders itself
            check=False,
            timeout=QUESTION_SECONDS,
        )
    top, _, prefix = inside.stdout.partition("\n")
    command = ["git", "clone", "--quiet", top or str(source), str(folder)]
    with limited("when it ends by itself, run this command again"):
        done = subprocess.run(command, capture_output=True, errors="replace", check=False, timeout=CLONE_SECONDS)
    if done.returncode:
        raise UserError(
            f"{source.resolve()}: git cannot clone it ({' '.join(done.stderr.split())}); run this command in a clone"
            " of the repository"
        )
    folder = folder / prefix.strip()
    if not (folder / "dvc.lock").is_file():
        raise UserError("dvc.lock is not in the commit; after a run: `git add dvc.lock results && git commit`")
    return folder, read_lock(folder)


def run_all(folder: Path, stages: Sequence[str] = ()) -> None:
    """`dvc repro` in a clone, with the clone's code and this environment's programs, nothing taken from a cache. It has
    no limit of time: its stages take as long as a run takes, and say how far they are."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = [sys.executable, "-m", "dvc", "repro", "--force", "--no-run-cache", *stages]
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(folder.resolve())}
    if code := subprocess.run(command, cwd=folder, env=environment, stdout=sys.stderr, check=False).returncode:
        raise RtdmdError(f"the run in {folder} ended with {code}; its last lines say why (--into DIR keeps the folder)")


def compare(step: Step, source: Path, folder: Path) -> Iterator[Row]:
    """A row for each output of a stage of the commit."""
    for path, digest in step.outputs.items():
        made = folder / path
        here = md5_like_dvc(made) if made.exists() else MISSING
        if here in (digest, MISSING):
            yield Row(step.name, path, digest, here)
        elif original := find_recorded(path, digest, source, folder):
            apart = distance(original, made)
            yield Row(step.name, path, digest, here, apart.words, apart.within)
        else:
            yield Row(step.name, path, digest, here, "the recorded file is not here: `dvc pull` first")


def find_recorded(path: str, digest: str, source: Path, folder: Path) -> Path | None:
    """The file that dvc.lock means: in the checkout, in its cache, or in its commit; None when it is in none."""
    kept = folder / ".rtdmd" / "recorded" / path
    kept.parent.mkdir(parents=True, exist_ok=True)
    command = ["git", "show", f"HEAD:./{path}"]
    with limited(f"when it answers in {folder.resolve()}, run this command again"):
        blob = subprocess.run(command, cwd=folder, capture_output=True, check=False, timeout=QUESTION_SECONDS)
    if blob.returncode == 0:
        kept.write_bytes(blob.stdout)
    cached = object_path(cache_folder(source), digest)
    return next((one for one in (source / path, cached, kept) if one.is_file() and md5_like_dvc(one) == digest), None)


def table(rows: Sequence[Row]) -> str:
    """The reproduction table in Markdown, columns aligned, the distance last where the bytes differ."""
    lines = [_HEADER, tuple("-" * len(name) for name in _HEADER)]
    lines += [(row.stage, row.path, row.recorded[:12], row.here[:12], _verdict(row)) for row in rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(_HEADER))]
    cells = (" | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
    return "\n".join(f"| {line} |" for line in cells)


def _verdict(row: Row) -> str:
    if row.equal:
        return "yes"
    judged = {None: "", True: "within: ", False: "OUTSIDE: "}[row.within]
    return f"no: {judged}{row.words or 'not written'}"
