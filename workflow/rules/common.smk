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
from rtdmd.pipeline.engines import end_future, load_jobs, stale_stages
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
    STALE = stale_stages(JOBS) if workflow.is_main_process else {}  # stage: why; a job's own process decides nothing
except UserError as error:
    raise WorkflowError(str(error)) from error

for stage, reason in STALE.items():
    logger.info(f"DVC: {stage} has to run: {reason}")

MAKERS = {path: job.name for job in JOBS.values() for path in job.outputs}
NEEDS = Needs(PARAMS)  # memory, time and GPUs by rule, from `rtdmd plan`
THREADS = PARAMS.run.threads
SHOWN = {".html", ".png", ".csv"}


def mark(stage, path):
    """Pictures, pages and tables also go into `snakemake --report`."""
    if Path(path).suffix not in SHOWN:
        return path
    return report(path, category=stage, caption="../report/stage.rst")


def inputs(stage):
    """The results that a stage reads, and DVC's verdict on it. No file's time decides: a result whose maker is up to
    date is `ancient`, one whose maker is stale comes anew (and its readers are stale too). Code and data are DVC's
    alone."""
    read = [path for path in JOBS[stage].inputs if path in MAKERS]
    return [path if MAKERS[path] in STALE else ancient(path) for path in read] + [verdict(stage)]


def verdict(stage):
    """An input function that names no file: Snakemake calls it when it makes the stage's job and before it decides
    which jobs run, and is told there that a stale stage does. (`--forcerun` would make every stale stage a target,
    whatever the user asked for; a mark on disk would be written by a dry run.)"""

    def tell(wildcards):
        if stage in STALE:
            workflow.dag.forcerules.add(workflow.get_rule(stage))
        return []

    return tell


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
