"""A rehearsal from params to table: checks, stand-ins, a Hub on loopback, and `snakemake` as a user would start it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import torch
from huggingface_hub import get_token

from rtdmd.common.errors import RtdmdError, UserError
from rtdmd.common.signals import Stopped, caught
from rtdmd.config import Params
from rtdmd.pipeline.dvc_yaml import read_pipeline
from rtdmd.pipeline.model_inputs import groups_of_run, require_pins
from rtdmd.pipeline.to_fill_in import commits_to_fill_in, fill_in_lines
from rtdmd.plan.check import check_run
from rtdmd.rehearse import bases, prompt_sets, scorers
from rtdmd.rehearse.folder import check_places, commit, lay, place_of, read_own_prompts
from rtdmd.rehearse.hub import Hub
from rtdmd.rehearse.hub_store import DATASETS
from rtdmd.rehearse.imported import write_checkpoint
from rtdmd.rehearse.reduced import filled_in, reduced
from rtdmd.rehearse.stand_in import StandIn
from rtdmd.rehearse.table import (
    Row,
    access_text,
    downloads_text,
    exercised,
    measured,
    silent_text,
    table_text,
    unproved_text,
)

TOKEN = "hf_of_the_rehearsal"
FOREIGN = ("HF_", "HUGGING", "TRANSFORMERS_", "DIFFUSERS_", "SNAKEMAKE_", "DVC_", "GIT_")
"""Beginnings of the names of settings that would lead a run away from its folder, or carry the user's token there."""
PATIENCE = 60.0
"""Seconds that a stopped run has to end by itself."""
ANSWERS = "600"
"""Seconds that a stage waits for an answer of this machine's Hub, which shares its processors with the stages."""
LOGS = "logs"  # of the stages, by the rules of the workflow
_FAULT = re.compile(r"^rtdmd(?P<stage> \w+)?: (?P<says>.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Plan:
    """What is rehearsed, and with what.

    asked: the user's params. pipeline: the text of dvc.yaml where it is not the checkout's own. fill_in: whether the
    placeholders of commits may be any commit.
    """

    asked: Params
    pipeline: str | None = None
    fill_in: bool = False


class Ended(Exception):
    """Something of the run ended with an error: what it was, its log (None where it has none) and the error in its own
    words."""

    def __init__(self, what: str, log: Path | None, error: RtdmdError) -> None:
        super().__init__(str(error))
        self.what = what
        self.log = log
        self.error = error


def rehearse(root: Path, plan: Plan, keep: Path | None = None) -> str:
    """Rehearse in a folder of its own, ``keep`` or a temporary one, and return the closing table.

    UserError for what the real run would refuse, RtdmdError for what it would end with; the folder is then kept and
    named on standard error.
    """
    if keep is not None and keep.exists():
        raise UserError(f"--keep {keep}: exists; name a new folder")
    check_places(plan.asked)
    if not plan.fill_in:
        require_pins(plan.asked, groups_of_run(plan.asked))
    judged = plan.asked.evaluate.model_copy(update={"imported": None})  # a rehearsal imports one of its own
    check_run(plan.asked.model_copy(update={"evaluate": judged}), root, declared=plan.pipeline is None)
    read_own_prompts(root, plan.asked)
    folder = Path(tempfile.mkdtemp(prefix="rtdmd-rehearse-")) if keep is None else keep
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    try:
        with caught():
            text = _rehearsed(root, folder.resolve(), plan, rows)
    except Ended as ended:
        where = "" if ended.log is None else f"; its log: {folder / ended.log}"
        failed = Row(ended.what, f"failed{where}", None, None, None)
        print(f"{table_text([*rows, failed])}\nrtdmd rehearse: its folder is kept: {folder}", file=sys.stderr)
        raise ended.error from ended
    except (RtdmdError, OSError):
        print(f"rtdmd rehearse: its folder is kept: {folder}", file=sys.stderr)
        raise
    except (KeyboardInterrupt, Stopped) as stop:
        if keep is None:
            shutil.rmtree(folder, ignore_errors=True)
        then = "nothing is kept of a rehearsal" if keep is None else f"its folder is kept: {keep}"
        raise KeyboardInterrupt(then) from stop
    if keep is None:
        shutil.rmtree(folder)
    return text


def stand_ins(params: Params) -> list[StandIn]:
    """Of everything that the run would download or that the user provides."""
    return [*bases.stand_ins(params), *scorers.stand_ins(params), *prompt_sets.stand_ins(params)]


def _rehearsed(root: Path, folder: Path, plan: Plan, rows: list[Row]) -> str:
    """The closing tables; ``rows``: takes those of what has ended well. Ended where something of the run did not."""
    asked = filled_in(plan.asked) if plan.fill_in else plan.asked
    params = reduced(asked, asked.run.device)
    if torch.cuda.device_count() < max(params.train_acdmd.processes, params.train_rtdmd.processes):
        params = reduced(asked, "cpu")
    models = [one for one in stand_ins(params) if one.revision is not None or not (root / one.repo).is_dir()]
    used = lay(root, folder, params, plan.pipeline, models)
    with Hub(TOKEN) as hub:
        serve(hub, models, folder)
        environment = surroundings(folder, hub.url)
        if params.evaluate.imported is not None:
            seconds = _logged("import", write_checkpoint(folder, params, models), folder, environment)
            rows.append(Row("import", "an adapter on the student's base, gate", seconds, None, None))
            commit(folder, "the checkpoint that is judged")
        _stages(folder, params, environment, rows)
    unproved = unproved_text(models, used) + silent_text(params, folder)
    if params.train_acdmd.processes == params.train_rtdmd.processes == 1 and (folder / "results/train_acdmd").is_dir():
        unproved += "\n  several processes: both stages trained in one; --processes 2 rehearses two"
    if params.evaluate.imported is not None:
        unproved += f"\n  {params.evaluate.imported}: its adapter is random and made here; no file of others is read"
    parts = [table_text(rows), downloads_text(hub), unproved]
    if any(one.gated for one in models):
        parts.append(access_text(models, has_token=get_token() is not None))
    commits = commits_to_fill_in(plan.asked) if plan.fill_in else {}
    if commits:
        parts.append("\n".join(fill_in_lines("to fill in before the real run:", commits)))
    return "\n\n".join(parts)


def serve(hub: Hub, models: Sequence[StandIn], folder: Path) -> None:
    """Put the stand-ins of Hub repositories that lie in ``folder`` on the Hub."""
    for one in models:
        if one.revision is not None:
            name = one.repo if one.kind == "model" else f"{DATASETS}{one.repo}"
            hub.add(name, place_of(one, folder), one.revision, gated=one.gated)


def surroundings(folder: Path, url: str) -> dict[str, str]:
    """The environment of a run in ``folder``: this interpreter's programs, the folder's code, the Hub at ``url``, and
    nothing of the user's Hub: neither its token nor its cache."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    bypass = ",".join(filter(None, ("127.0.0.1", os.environ.get("NO_PROXY") or os.environ.get("no_proxy"))))
    return kept | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "PYTHONPATH": str(folder),
        "HF_ENDPOINT": url,
        "HF_HOME": str(folder / "home"),
        "HF_TOKEN": TOKEN,
        "HF_HUB_ETAG_TIMEOUT": ANSWERS,
        "HF_HUB_DOWNLOAD_TIMEOUT": ANSWERS,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "NO_PROXY": bypass,
        "no_proxy": bypass,
    }


def _stages(folder: Path, params: Params, environment: dict[str, str], rows: list[Row]) -> None:
    """Run everything; ``rows`` takes one for each stage that ended well, and one for the upload that is shown."""
    whole = "train_rtdmd" in params.evaluate.models
    target = [] if whole else ["evaluate"]  # a published run without a student ends there
    command = [sys.executable, "-m", "snakemake", "--cores", "all", *target]
    with _group(command, folder, environment, sys.stderr) as process:
        code = process.wait()
    did = exercised(params, folder)
    found = {stage: measured(folder, stage) for stage in read_pipeline(folder)}
    rows += [Row(stage, did[stage], *figures) for stage, figures in found.items() if figures is not None]
    if code:
        raise _of_stages(folder, code)
    if whole:
        commit(folder, "what was rehearsed")  # as `rtdmd upload` wants it
        seconds = _logged("upload", ["upload"], folder, environment)
        rows.append(Row("upload", did["upload"], seconds, None, None))


def _of_stages(folder: Path, code: int) -> Ended:
    """What ended Snakemake: the stage whose log came last, in its words, or where these are where it has none."""
    logs = [path for path in (folder / LOGS).glob("*.log") if measured(folder, path.stem) is None]
    if logs:
        last = max(logs, key=lambda path: path.stat().st_mtime_ns)
        return _ended(last.stem, last.relative_to(folder), folder, code)
    own = max((folder / ".snakemake/log").glob("*.log"), key=lambda path: path.stat().st_mtime_ns, default=None)
    return _ended("snakemake", None if own is None else own.relative_to(folder), folder, code)


def _logged(what: str, words: list[str], folder: Path, environment: dict[str, str]) -> float:
    """Run `rtdmd` with these words, shown on standard error and kept in a log, as Snakemake keeps those of stages;
    returns the seconds that it took. Ended where it fails."""
    begin = time.monotonic()
    log = Path(LOGS) / f"{what}.log"
    (folder / LOGS).mkdir(exist_ok=True)
    command = [sys.executable, "-m", "rtdmd", *words]
    with (folder / log).open("wb") as file, _group(command, folder, environment, subprocess.PIPE) as process:
        for line in process.stdout or ():
            file.write(line)
            sys.stderr.write(line.decode("utf-8", errors="replace"))
        code = process.wait()
    if code:
        raise _ended(what, log, folder, code)
    return time.monotonic() - begin


@contextmanager
def _group(
    command: list[str], folder: Path, environment: dict[str, str], shown: TextIO | int
) -> Iterator[subprocess.Popen[bytes]]:
    """The program in a process group of its own, all of which ends with us: by Ctrl-C, which it then gets from here
    alone, or by a scheduler's signal. ``shown``: where its output goes, errors too where that is a pipe."""
    errors = subprocess.STDOUT if shown == subprocess.PIPE else None
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=shown, stderr=errors, start_new_session=True
    ) as process:
        try:
            yield process
        except (KeyboardInterrupt, Stopped) as stop:
            os.killpg(process.pid, signal.SIGINT if isinstance(stop, KeyboardInterrupt) else signal.SIGTERM)
            try:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(PATIENCE)
            finally:  # what is left of the group, also where a second Ctrl-C cut the wait short
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            raise


def _ended(what: str, log: Path | None, folder: Path, code: int) -> Ended:
    """What ``what`` said at its end, as the real run would say it: UserError where the user can mend it."""
    said = "" if log is None else (folder / log).read_text(encoding="utf-8", errors="replace")
    faults = list(_FAULT.finditer(said))
    if not faults:
        where = "its last lines say why" if log is None else f"the last lines of {folder / log} say why"
        return Ended(what, log, RtdmdError(f"{what} ended with {code}; {where}"))
    stage = faults[-1]["stage"]
    says = faults[-1]["says"]
    return Ended(what, log, UserError(says) if stage is None else RtdmdError(f"{stage.strip()}: {says}"))
