"""The processes of a run on the other nodes of a Slurm job.

The stage that an engine starts runs on the job's first node and is rank 0. It starts the other processes of its own
node itself, and those of all other nodes by one `srun`, a task each. A task counts its rank from `FIRST_RANK`.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from shutil import which

from rtdmd.common.errors import UserError
from rtdmd.common.processes import QUESTION_SECONDS, limited

SRUN = "srun"
FIRST_RANK = "RTDMD_FIRST_RANK"
"""The variable that tells a task of `srun` that the stage started it, and the rank of the first of them."""


def require_allocation(stage: str, processes: int, gpus_per_node: int, env: Mapping[str, str]) -> None:
    """UserError unless this process is on the first node of a Slurm job that has nodes enough for ``processes``."""
    nodes = processes // gpus_per_node
    asked = f"{stage}.processes: {processes} with run.gpus_per_node: {gpus_per_node} takes {nodes} nodes"
    submit = "`snakemake --cores all --profile slurm` asks for them"
    if "SLURM_JOB_ID" not in env:
        raise UserError(f"{asked}, and this is not a Slurm job; {submit}, as does `sbatch --nodes={nodes}`")
    if which(SRUN, path=env.get("PATH")) is None:
        raise UserError(
            f"{asked}, whose processes srun starts, but there is no srun; put Slurm's programs on PATH in the job"
        )
    job = env["SLURM_JOB_ID"]
    count, first = _allocated(job)
    if count < nodes:
        raise UserError(f"{asked}, but Slurm's job {job} has {count}; {submit}, as does `sbatch --nodes={nodes}`")
    if env.get("SLURMD_NODENAME") != first:
        here = f"on {env['SLURMD_NODENAME']}" if "SLURMD_NODENAME" in env else "on none of its nodes"
        raise UserError(
            f"{asked} and starts on the first, {first}, of Slurm's job {job}, but this is {here};"
            f" give the same command to `srun --nodes=1 --ntasks=1 --overlap --nodelist={first}`"
        )


def _allocated(job: str) -> tuple[int, str]:
    """How many nodes a job has, and its first. In a job's step the variables tell of the step alone."""
    command = ["squeue", "--noheader", f"--jobs={job}", "--format=%D %N"]
    with limited("when Slurm answers, run this command again"):
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", check=False, timeout=QUESTION_SECONDS
        )
    count, _, nodes = done.stdout.strip().partition(" ")
    if done.returncode or not nodes:
        raise UserError(f"SLURM_JOB_ID: squeue knows no running job {job} ({done.stderr.strip()})")
    return int(count), first_host(nodes)


def first_host(nodes: str) -> str:
    """The first host of Slurm's list: ``rack[1-2]n[03-05,9],login`` is ``rack1n03``.

    Not by `scontrol show hostnames`, which a container often does not have.
    """
    first = re.match(r"(?:[^\s,\[\]]|\[\d+(?:-\d+)?(?:,\d+(?:-\d+)?)*\])+(?=,|$)", nodes)
    if first is None:
        raise UserError(f"SLURM_STEP_NODELIST: {nodes!r} names no host; set MASTER_ADDR to rank 0's host")
    return re.sub(r"\[(\d+)[^\]]*\]", r"\1", first[0])


def on_other_nodes(command: Sequence[str], processes: int, gpus_per_node: int, threads: int) -> list[str]:
    """``command`` as srun starts it on all nodes but the first, ``gpus_per_node`` times on each.

    A task that is killed ends the step at once. The stage's own step holds its node whole, hence ``--overlap``.
    """
    nodes = processes // gpus_per_node - 1
    return [
        SRUN,
        "--overlap",
        "--relative=1",
        f"--nodes={nodes}",
        f"--ntasks={nodes * gpus_per_node}",
        f"--ntasks-per-node={gpus_per_node}",
        "--distribution=block",
        f"--cpus-per-task={threads}",
        "--cpu-bind=none",
        "--kill-on-bad-exit=1",
        "--export=ALL",
        "--input=none",
        "--quiet",
        *command,
    ]


def address(env: Mapping[str, str] = os.environ) -> str:
    """Where the other nodes find this one: MASTER_ADDR where it is set, else Slurm's name of this node."""
    return env.get("MASTER_ADDR") or env["SLURMD_NODENAME"]
