"""The rehearsal's own folder: a small repository with the checkout's workflow, the reduced params and the stand-ins."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
from collections.abc import Sequence
from itertools import islice
from pathlib import Path, PurePosixPath
from shutil import copy2

from rtdmd.common.errors import UserError
from rtdmd.common.files import write_atomic
from rtdmd.common.processes import QUESTION_SECONDS, limited
from rtdmd.config import Params
from rtdmd.config.render import params_text
from rtdmd.pipeline.model_inputs import IMPORTED, model_inputs
from rtdmd.prompts.records import ErrorPolicy
from rtdmd.prompts.registration import FileParams, Reading
from rtdmd.prompts.registry import SOURCES
from rtdmd.prompts.tables import SEPARATORS
from rtdmd.rehearse.stand_in import StandIn

HUB = "hub"
WORKFLOW = (
    *("Snakefile", "workflow", "profiles", "slurm", "dvc.yaml", ".dvc", ".dvcignore", ".gitignore"),
    *("rtdmd", "tools", "pyproject.toml", "requirements.lock", "data/world", "data/prompts/README.md"),
)
"""What a run needs of the checkout; of these paths what Git has or would take."""
LINES = 64
"""Of a prompt file of the user's, which has a prompt per line."""
_WHO = ("-c", "user.name=rehearsal", "-c", "user.email=rehearsal@localhost", "-c", "commit.gpgsign=false")
_OURS = ("-c", "core.hooksPath=/dev/null")  # no hook of the user's runs


def check_places(params: Params) -> None:
    """UserError where a folder that the params name would be another one from the rehearsal's own folder."""
    for model in model_inputs(params):
        name = PurePosixPath(model.name)
        if model.revision is None and ".." in name.parts:
            raise UserError(
                f"{model.key}: {name}: a rehearsal runs in a folder of its own, where that is another one; name it by"
                " its absolute path"
            )
    imported = params.evaluate.imported
    if imported is not None and PurePosixPath(imported).is_absolute():
        raise UserError(
            f"evaluate.imported: {imported}: a rehearsal makes that folder anew, so it has to lie in the checkout, such"
            f" as models/{PurePosixPath(imported).name}"
        )


def read_own_prompts(root: Path, params: Params) -> None:
    """Read every line of the prompt files of ``root`` that a stage names and that are there, since a rehearsal uses the
    first ones alone. UserError for a fault, as stage prepare_prompts says it."""
    settings = params.prepare_prompts
    for name in (*params.training_sets, *params.evaluation_sets):
        for number, spec in enumerate(settings.sets[name]):
            if isinstance(spec, FileParams) and spec.repo is None and (root / spec.path).is_file():
                key = f"prepare_prompts.sets.{name}[{number}]"
                policy = ErrorPolicy(drop=settings.on_bad == "drop")
                reading = Reading(key, root.joinpath, params.run.seed, settings.max_characters, policy)
                SOURCES[spec.name].read(spec, reading)


def lay(root: Path, folder: Path, params: Params, pipeline: str | None, stand_ins: Sequence[StandIn]) -> list[str]:
    """Fill ``folder`` from the checkout at ``root``; returns the files of the user's that are used, cut.

    params: the reduced ones; pipeline: the text of dvc.yaml where it is not the checkout's. UserError where ``root`` is
    no checkout.
    """
    _copy_workflow(root, folder)
    write_atomic(folder / "params.yaml", params_text(params, "rtdmd rehearse"))
    if pipeline is not None:
        write_atomic(folder / "dvc.yaml", pipeline)
    write_atomic(folder / ".dvc/config.local", "[cache]\n    dir = cache\n")  # whatever the user's own settings say
    with (folder / ".gitignore").open("a", encoding="utf-8") as file:
        file.write(f"/{HUB}/\n/home/\n")
    used = [one.repo for one in stand_ins if one.kind == "file" and _cut(root / one.repo, folder / one.repo)]
    for one in stand_ins:
        if one.repo not in used:
            _write(one, folder)
    _link_own(root, folder, params)
    git(folder, "init", "--quiet")
    commit(folder, "what is rehearsed")
    return used


def place_of(one: StandIn, folder: Path) -> Path:
    """Where a stand-in lies: what the user provides in its own place, all else below the folder of the Hub."""
    if one.revision is None:
        return folder / one.repo
    return folder / HUB / one.kind / one.revision / one.repo


def _write(one: StandIn, folder: Path) -> None:
    place = place_of(one, folder)
    place.parent.mkdir(parents=True, exist_ok=True)
    if one.kind != "file":
        place.mkdir(exist_ok=True)
    one.write(place)


def _copy_workflow(root: Path, folder: Path) -> None:
    listed = git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--deduplicate", "--", *WORKFLOW)
    names = [name for name in listed.split("\0") if name]
    if "Snakefile" not in names or "dvc.yaml" not in names:
        raise UserError(f"{root.resolve()} has no Snakefile and dvc.yaml; `rtdmd rehearse` runs in a checkout's root")
    for name in names:
        source = root / name
        if source.is_symlink() or source.is_file():  # one that is deleted and not committed yet is listed too
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            copy2(source, folder / name, follow_symlinks=False)


def _cut(source: Path, target: Path) -> bool:
    """The first prompts of the user's own file, where it is there."""
    if not source.is_file():
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    text = source.read_bytes()
    if source.suffix == ".json":
        try:
            rows = json.loads(text)
        except ValueError:  # the run says what is wrong with it
            rows = None
        kept = json.dumps(rows[:LINES], ensure_ascii=False).encode() if isinstance(rows, list) else text
    else:
        lines = _lines_of_rows(text, source.suffix) if source.suffix in SEPARATORS else LINES
        kept = b"".join(text.splitlines(keepends=True)[:lines])
    write_atomic(target, kept)
    return True


def _lines_of_rows(text: bytes, suffix: str) -> int:
    """How many lines a table's header and first rows take: a quoted cell may hold several."""
    quoted = suffix == ".csv" or text.startswith(b'"')
    lines = io.StringIO(text.decode("latin-1"), newline="")
    rows = csv.reader(lines, delimiter=SEPARATORS[suffix], quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE)
    try:
        for _ in islice(rows, LINES + 1):
            pass
    except csv.Error:  # the run says what is wrong with it
        return len(text.splitlines())
    return rows.line_num


def _link_own(root: Path, folder: Path, params: Params) -> None:
    """Models of the user's that lie in the checkout and have no stand-in are used where they are."""
    for model in model_inputs(params):
        name = PurePosixPath(model.name)
        own = root / name
        if model.place == IMPORTED or model.revision is not None or name.is_absolute():
            continue
        if (folder / name).exists() or not own.exists():
            continue
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(own.resolve())


def commit(folder: Path, message: str) -> None:
    """Commit all that Git would take in ``folder``."""
    git(folder, "add", "--all")
    git(folder, *_WHO, "commit", "--quiet", "--allow-empty", "--message", message)


def git(root: Path, *arguments: str) -> str:
    """What Git says. UserError with its words where it fails."""
    with limited("when it ends by itself, run this command again"):
        done = subprocess.run(
            ["git", *_OURS, *arguments],
            cwd=root,
            env={name: value for name, value in os.environ.items() if not name.startswith("GIT_")},  # set in hooks
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",
            check=False,
            timeout=QUESTION_SECONDS,
        )
    if done.returncode:
        said = " ".join(done.stderr.split())
        raise UserError(
            f"{root.resolve()}: `git {arguments[0]}` says {said}; run this command in a clone of the repository"
        )
    return done.stdout
