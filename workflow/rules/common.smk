# What the rules share: validated parameters, and the stages as DVC resolves them.
#
# One job is one DVC stage (`dvc repro --single-item`), and what has to run is what DVC says (rtdmd/pipeline/engines.py): the engines agree
# and share the cache. The job's progress bar goes to the terminal and into the log.
import shlex
import sys
from functools import cache
from pathlib import Path

sys.path.insert(0, workflow.basedir)  # this folder's rtdmd, whichever is installed

from snakemake.exceptions import WorkflowError

from rtdmd.config import load_params
from rtdmd.pipeline.engines import load_jobs, mark_stale
from rtdmd.common.errors import UserError
from rtdmd.plan.needs import Needs

# `dvc` and `python` are those of the environment that runs Snakemake, activated or not, unless jobs get their own
# (`--software-deployment-method`). A scheduler's SIGTERM reaches every process of a job: the shell and DVC outlive it, so that the
# stage (rtdmd/pipeline/signals.py) can save and DVC let go of its locks.
OWN = workflow.deployment_settings.deployment_method
HERE = "" if OWN else f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH; "
shell.prefix(f"set -euo pipefail; trap '' TERM; {HERE}")

try:
    PARAMS = load_params()
    JOBS = load_jobs(PARAMS)
    if workflow.is_main_process:
        mark_stale(JOBS)
except UserError as error:
    raise WorkflowError(str(error)) from error

MADE = {path for job in JOBS.values() for path in job.outputs}
NEEDS = Needs(PARAMS)  # memory, time and GPUs by rule, from `rtdmd plan`
THREADS = PARAMS.run.threads
SHOWN = {".html", ".png", ".csv"}


def mark(stage, path):
    """Pictures, pages and tables also go into `snakemake --report`."""
    if Path(path).suffix not in SHOWN:
        return path
    return report(path, category=stage, caption="../report/stage.rst")


def inputs(stage):
    """What a stage reads, and the mark that says whether it has to run: the times of code and data do not."""
    return [path if path in MADE else ancient(path) for path in JOBS[stage].inputs] + [JOBS[stage].mark]


def outputs(stage):
    """The outputs of a stage, as DVC resolves them."""
    return [mark(stage, path) for path in JOBS[stage].outputs]


def when_asked(read):
    """What `read()` gives, read when a job needs it: a mistake in the settings of `world` or `sweep` is told to whoever
    asks for these, and stops nothing else."""

    @cache
    def value():
        try:
            return read()
        except UserError as error:
            raise WorkflowError(str(error)) from error

    return value


def refuse_before_outputs_go():
    """On a cluster: Snakemake removes a job's outputs and then submits it, so Slurm is asked whether it would start all
    of them."""
    if workflow.executor_plugin.name == "slurm":
        from rtdmd.pipeline.slurm import refuse_unstartable

        try:
            refuse_unstartable(job for job in workflow.dag.needrun_jobs() if not workflow.is_local(job.rule))
        except UserError as error:
            raise WorkflowError(str(error)) from error
