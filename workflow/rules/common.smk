# What the rules share: validated parameters, and the stages as DVC resolves them.
#
# One job is one DVC stage (`dvc repro --single-item`), so that both engines agree and share the cache: after a run by either
# the other has nothing to do. The job's progress bar goes to the terminal and into the log.
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

from rtdmd.config import load_params
from rtdmd.engines import load_jobs
from rtdmd.errors import UserError

# `dvc` and `rtdmd` are those of the environment that runs Snakemake, activated or not.
shell.prefix(f"set -euo pipefail; export PATH='{Path(sys.executable).parent}':$PATH; ")

try:
    PARAMS = load_params()
    JOBS = load_jobs(PARAMS)
except UserError as error:
    raise WorkflowError(str(error)) from error

THREADS = PARAMS.run.threads
SHOWN = {".html", ".png", ".csv"}


def mark(stage, path):
    """Pictures, pages and tables also go into `snakemake --report`."""
    if Path(path).suffix not in SHOWN:
        return path
    return report(path, category=stage, caption="../report/stage.rst")


def outputs(stage):
    """The outputs of a stage, as DVC resolves them."""
    return [mark(stage, path) for path in JOBS[stage].outputs]
