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

import torch

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
from rtdmd.rehearse.table import Row, downloads_text, exercised, measured, table_text, unproved_text

TOKEN = "hf_of_the_rehearsal"
FOREIGN = ("HF_", "HUGGING", "TRANSFORMERS_", "DIFFUSERS_", "SNAKEMAKE_", "DVC_", "GIT_")
"""Beginnings of the names of settings that would lead a run away from its folder, or carry the user's token there."""
PATIENCE = 60.0
"""Seconds that a stopped run has to end by itself."""
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
    try:
        with caught():
            text = _rehearsed(root, folder.resolve(), plan)
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


def _rehearsed(root: Path, folder: Path, plan: Plan) -> str:
    asked = filled_in(plan.asked) if plan.fill_in else plan.asked
    params = reduced(asked, asked.run.device)
    if torch.cuda.device_count() < max(params.train_acdmd.processes, params.train_rtdmd.processes):
        params = reduced(asked, "cpu")
    models = [one for one in stand_ins(params) if one.revision is not None or not (root / one.repo).is_dir()]
    used = lay(root, folder, params, plan.pipeline, models)
    with Hub(TOKEN) as hub:
        serve(hub, models, folder)
        environment = surroundings(folder, hub.url)
        rows = []
        if params.evaluate.imported is not None:
            begin = time.monotonic()
            _started([sys.executable, "-m", "rtdmd", *write_checkpoint(folder, params, models)], folder, environment)
            rows.append(Row("import", "an adapter on the student's base, gate", time.monotonic() - begin, None, None))
            commit(folder, "the checkpoint that is judged")
        rows += _stages(folder, params, environment)
    unproved = unproved_text(models, used)
    if params.evaluate.imported is not None:
        unproved += f"\n  {params.evaluate.imported}: its adapter is random and made here; no file of others is read"
    parts = [table_text(rows), downloads_text(hub), unproved]
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
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "NO_PROXY": bypass,
        "no_proxy": bypass,
    }


def _stages(folder: Path, params: Params, environment: dict[str, str]) -> Iterator[Row]:
    """Run everything, then a row for each stage that ran, and one for the upload that is shown."""
    whole = "train_rtdmd" in params.evaluate.models
    target = [] if whole else ["evaluate"]  # a published run without a student ends there
    _started([sys.executable, "-m", "snakemake", "--cores", "all", *target], folder, environment)
    did = exercised(params, folder)
    for stage in read_pipeline(folder):
        found = measured(folder, stage)
        if found is not None:
            yield Row(stage, did[stage], *found)
    if whole:
        commit(folder, "what was rehearsed")  # as `rtdmd upload` wants it
        begin = time.monotonic()
        _started([sys.executable, "-m", "rtdmd", "upload"], folder, environment)
        yield Row("upload", did["upload"], time.monotonic() - begin, None, None)


def _started(command: list[str], folder: Path, environment: dict[str, str]) -> None:
    """Run a program with its progress on standard error. UserError or RtdmdError in the words of what failed."""
    with _group(command, folder, environment) as process:
        code = process.wait()
    if code:
        raise _fault(folder, command, code)


@contextmanager
def _group(command: list[str], folder: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """The program in a process group of its own, all of which ends with us: by Ctrl-C, which it then gets from here
    alone, or by a scheduler's signal."""
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=sys.stderr, start_new_session=True) as process:
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


def _fault(folder: Path, command: list[str], code: int) -> RtdmdError:
    """What a stage said at its end, as the real run would say it: UserError where the user can mend it."""
    logs = sorted((folder / "logs").glob("*.log"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for log in logs:
        faults = list(_FAULT.finditer(log.read_text(encoding="utf-8", errors="replace")))
        if faults:
            stage, says = faults[-1]["stage"], faults[-1]["says"]
            return UserError(says) if stage is None else RtdmdError(f"{stage.strip()}: {says}")
    name = " ".join(command[2:])
    return RtdmdError(f"`{name}` ended with {code}; its last lines say why")
