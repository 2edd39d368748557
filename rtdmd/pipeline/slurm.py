"""Slurm is asked before Snakemake begins: would it start every job of this run?

Snakemake removes a job's old outputs before it submits it, and after a failed submission they are gone. So the jobs are
shown to `sbatch --test-only` first, as the executor would submit them; it queues nothing.
"""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Iterable
from typing import Any

from snakemake_executor_plugin_slurm.submit_string import get_submit_command
from snakemake_executor_plugin_slurm.utils import set_gres_string

from rtdmd.common.errors import UserError
from rtdmd.common.processes import QUESTION_SECONDS, limited

ASKED = ("slurm_partition", "slurm_account", "mem_mb", "runtime", "nodes", "tasks", "gpu", "gres", "slurm_extra")
NODES = ("sinfo", "--noheader", "--format=%P: %D nodes of %c cores, %m MB, %G, up to %l")


def refuse_unstartable(jobs: Iterable[Any]) -> None:
    """UserError for the first of Snakemake's jobs that Slurm would not take, with what it asks for and what there
    is."""
    for job in jobs:
        with limited("nothing was started: when Slurm answers, run this command again"):
            done = subprocess.run(
                test_command(job), capture_output=True, errors="replace", check=False, timeout=QUESTION_SECONDS
            )
        if done.returncode:
            said = "; ".join(line.removeprefix("sbatch: error: ") for line in done.stderr.strip().splitlines())
            asked = ", ".join(f"{name} {job.resources[name]}" for name in ASKED if job.resources.get(name))
            raise UserError(
                f"Slurm would not start {job.rule.name}: {said}. It asks for {asked}, {job.threads} cores; there is"
                f" {nodes()}. Nothing was started or removed: change slurm/config.yaml, or give"
                f" --set-resources {job.rule.name}:slurm_partition=NAME (or :mem_mb=, :runtime=, :gpu=)"
            )


def test_command(job: Any) -> list[str]:
    """`sbatch --test-only` with the options that the executor would give it."""
    resources = job.resources
    options = {
        "run_uuid": "test",
        "slurm_logfile": "/dev/null",
        "comment_str": "test",
        "account": f"-A {shlex.quote(str(resources.slurm_account))}" if resources.get("slurm_account") else "",
        "partition": f"-p {shlex.quote(str(resources.slurm_partition))}" if resources.get("slurm_partition") else "",
        "workdir": "",
    }
    return [*shlex.split(get_submit_command(job, options) + set_gres_string(job)), "--test-only", "--wrap=true"]


def nodes() -> str:
    """The partitions and the nodes behind them, as Slurm has them now."""
    with limited("nothing was started: when Slurm answers, run this command again"):
        done = subprocess.run(NODES, capture_output=True, errors="replace", check=False, timeout=QUESTION_SECONDS)
    return "; ".join(line.strip() for line in done.stdout.splitlines()) or "no answer from `sinfo`"
