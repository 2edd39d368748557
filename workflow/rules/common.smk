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
from rtdmd.pipeline.engines import end_future, load_jobs, stale_stages, with_readers
from rtdmd.common.errors import UserError
from rtdmd.plan.resources import StageResources

# `dvc` and `python` are those of the environment that runs Snakemake, activated or not, unless jobs get their own
# (`--software-deployment-method`). A scheduler's SIGTERM reaches every process of a job: the shell and DVC outlive it, so that the
# stage (rtdmd/common/signals.py) can save and DVC let go of its locks.
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
RESOURCES = StageResources(PARAMS)  # memory, time and GPUs by rule, from `rtdmd plan`
THREADS = PARAMS.run.threads
SHOWN = {".html", ".png", ".csv"}


def mark(stage, path):
    """Pictures, pages and tables also go into `snakemake --report`."""
    if Path(path).suffix not in SHOWN:
        return path
    return report(path, category=stage, caption="../report/stage.rst")


def inputs(stage):
    """The results that a stage reads, and DVC's verdict; code and data are DVC's alone."""
    return [path for path in JOBS[stage].inputs if path in MAKERS] + [verdict]


def verdict(wildcards):
    """An input function that names no file: Snakemake calls it while it makes the jobs and before it decides which of
    them run. It is told there that the stale stages do, and that no other stage may: neither the time of a file nor a
    note of its own counts, but what the user forces does, with the readers. (`--forcerun` would make every stale stage
    a target, whatever the user asked for; a mark on disk would be written by a dry run.)"""
    if workflow.is_main_process:
        dag = workflow.dag
        forced = {rule.name for rule in dag.forcerules} | {MAKERS.get(path) for path in dag.forcefiles}
        may_run = with_readers(JOBS, forced) | STALE.keys()
        dag.forcerules.update(workflow.get_rule(stage) for stage in STALE)
        dag.rules_allowed_for_needrun = {rule.name for rule in workflow.rules} - (JOBS.keys() - may_run)
    return []


def outputs(stage):
    """The outputs of a stage, as DVC resolves them."""
    return [mark(stage, path) for path in JOBS[stage].outputs]


def when_asked(read):
    """What `read()` gives, read when a job needs it: a mistake in the settings of `world`, `sweep` or `experiments` is
    told to whoever asks for these, and stops nothing else. (An error that a rule's function raises is shown with a
    traceback, so this one ends Snakemake itself.)"""

    @cache
    def value():
        try:
            return read()
        except UserError as error:
            logger.error(str(error))
            sys.exit(1)

    return value


def figures_of(jobs, table, runs):
    """The files that say that all figures of a published table are there. A checkpoint that one of its runs judges has to
    be imported before the first job starts; a dry run needs none."""
    if not workflow.dryrun:
        when_asked(lambda: jobs.require(runs))()
    return jobs.files(jobs.of_table(table))


def asked_of(jobs, name):
    """A resource of an experiment's job; None, which is none, where it has no such one: `nodes` on one node, `gpu` on
    several."""
    return lambda wildcards: jobs().resources(wildcards.experiment, wildcards.step).get(name)


def refuse_before_outputs_go():
    """On a cluster: Snakemake removes a job's outputs and then submits it, so Slurm is asked whether it would start all
    of them."""
    if workflow.executor_plugin.name == "slurm":
        from rtdmd.pipeline.slurm import refuse_unstartable

        try:
            refuse_unstartable(job for job in workflow.dag.needrun_jobs() if not workflow.is_local(job.rule))
        except UserError as error:
            raise WorkflowError(str(error)) from error
