"""A training of two processes on two nodes of a real Slurm, disturbed in every way, ends in the bytes of two processes
on one machine. It takes minutes: RTDMD_SLURM_TEST=long, which `make slurm-test` sets."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from rtdmd.common.files import sha256_file
from rtdmd.config import preset
from rtdmd.config.render import params_text
from rtdmd.pipeline.dvc_yaml import read_pipeline
from tests.workflow.checkout import copy, make_checkout, run
from tests.workflow.slurm_cluster import NODES, Cluster, wait_for
from tests.workflow.test_slurm import long, trained

pytestmark = long
STAGES = ("train_acdmd", "train_rtdmd")
FIRST, SECOND = NODES
SNAKEMAKE = ("snakemake", "--cores", "all", "--profile", "slurm")
TOTAL = 24
# Long enough for a kill in the middle.
TRAINING: dict[str, dict[str, Any]] = {
    "train_acdmd": {"iterations": TOTAL, "save_every": 1, "log_every": 5, "processes": 2, "batch_size": 4},
    "train_rtdmd": {"epochs": TOTAL, "save_every": 1, "log_every": 5, "processes": 2},
}
ENDS = ("COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL")
SAVED = rf"stopped by SIGTERM after (iteration|epoch) \d+ of {TOTAL}, which is saved"
ALONE = "another process of the run ended or does not answer; .* the same command goes on from the last checkpoint"


def write_params(root: Path, gpus_per_node: int | None) -> None:
    """Of two processes on one machine (None), or on two nodes (1)."""
    changes = {"model": {"teacher_steps": 2}, "run": {"threads": 1, "gpus_per_node": gpus_per_node}}
    (root / "params.yaml").write_text(params_text(preset("smoke", changes | TRAINING), "a test"), encoding="utf-8")


def outputs(root: Path, stage: str) -> dict[str, str]:
    """SHA-256 of all that a stage writes."""
    return {path: sha256_file(root / path) for path in read_pipeline(root)[stage].outs}


@pytest.fixture(scope="module")
def one_machine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the checkout before each training, by its name, and `after`: what two processes of one machine
    leave. Copy them, no more."""
    folder = tmp_path_factory.mktemp("nodes")
    root = make_checkout(folder / "after")
    write_params(root, None)
    run(root, "dvc", "repro", "--quiet", "cache_teacher")
    for stage in STAGES:
        copy(root, folder / stage)
        run(root, "dvc", "repro", "--quiet", stage)
    return folder


def prepare(one_machine: Path, root: Path, stage: str, cluster: Cluster) -> Path:
    """The checkout of one test, whose training runs on two nodes."""
    copy(one_machine / stage, root)
    write_params(root, 1)
    cluster.wait_until_idle()
    return root


@pytest.fixture(autouse=True)
def nothing_runs_on(cluster: Cluster) -> Iterator[None]:
    """After a test."""
    yield
    cluster.ask("scancel", "--me")


def submit(root: Path, stage: str) -> str:
    """`dvc repro` in a job of two nodes; the job's id. What all such jobs say is in batch.log."""
    wrapped = f"trap '' TERM; dvc repro --quiet --single-item {stage}"
    options = ("--nodes=2", "--ntasks=2", "--requeue", "--output=batch.log", "--open-mode=append")
    return run(root, "sbatch", "--parsable", f"--comment=rule_{stage}", *options, f"--wrap={wrapped}").strip()


def cancel(cluster: Cluster, job: str) -> None:
    """By its owner."""
    cluster.ask("scancel", job)


def preempt(cluster: Cluster, job: str) -> None:
    """By a job of higher priority, which needs both nodes."""
    cluster.ask("sbatch", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
    wait_for("the job in the queue again", lambda: state(cluster, job) == "PENDING", 120, 0.05)


def kill_rank(cluster: Cluster, job: str) -> None:
    """The process on the second node."""
    (task,) = (one for one in psutil.process_iter(["cmdline"]) if is_task(one))
    task.kill()


def is_task(process: psutil.Process) -> bool:
    """Whether it runs a stage on the second node."""
    command = process.info["cmdline"] or []
    mine = command[-3:-1] == ["-m", "rtdmd"] and command[-1] in STAGES
    return mine and process.environ().get("SLURMD_NODENAME") == SECOND


def lose_second(cluster: Cluster, job: str) -> None:
    """slurmd, slurmstepd and all that they started."""
    lose(cluster, job, SECOND)


def lose_first(cluster: Cluster, job: str) -> None:
    """With the stage itself."""
    lose(cluster, job, FIRST)


def lose(cluster: Cluster, job: str, node: str) -> None:
    """A node, which comes back once Slurm has missed it and put the job back into the queue."""
    cluster.lose(node)
    wait_for("the job in the queue again", lambda: state(cluster, job) == "PENDING", 150)
    cluster.start(node)


def state(cluster: Cluster, job: str) -> str:
    """Of a job."""
    return cluster.ask("squeue", "--noheader", f"--jobs={job}", "--states=all", "--format=%T").strip()


@pytest.mark.parametrize("stage", STAGES)
def test_snakemake_submits_one_job_of_two_nodes(
    one_machine: Path, tmp_path: Path, cluster: Cluster, stage: str
) -> None:
    root = prepare(one_machine, tmp_path / "run", stage, cluster)
    run(root, *SNAKEMAKE, stage)
    assert outputs(root, stage) == outputs(one_machine / "after", stage)
    jobs = cluster.ask("squeue", "--noheader", "--states=all", "--sort=i", "--format=%T %k %D nodes").splitlines()
    assert jobs[-1] == f"COMPLETED rule_{stage} 2 nodes"


@pytest.mark.parametrize(
    ("stage", "fault", "again", "says"),
    [
        ("train_acdmd", cancel, True, SAVED),
        ("train_acdmd", preempt, False, SAVED),
        ("train_acdmd", kill_rank, True, ALONE),
        ("train_acdmd", lose_second, False, ALONE),
        ("train_acdmd", lose_first, False, ""),
        ("train_rtdmd", preempt, False, SAVED),
        ("train_rtdmd", kill_rank, True, ALONE),
    ],
)
def test_a_disturbed_job_ends_soon_and_goes_on_to_the_same_bytes(
    one_machine: Path,
    tmp_path: Path,
    cluster: Cluster,
    stage: str,
    fault: Callable[[Cluster, str], None],
    again: bool,
    says: str,
) -> None:
    """Under its own id where Slurm puts it back into the queue, else when it is submitted ``again``."""
    root = prepare(one_machine, tmp_path / "run", stage, cluster)
    job = submit(root, stage)
    wait_for("training", lambda: trained(root, stage, 5), 900, 0.05)
    fault(cluster, job)
    if again:
        wait_for("the job's end", lambda: state(cluster, job) in ENDS, 120)
        assert not (root / "results" / stage / "generator.safetensors").exists()
        cluster.wait_until_idle()
        job = submit(root, stage)
    wait_for("the end of the training", lambda: state(cluster, job) in ENDS, 900)
    said = (root / "batch.log").read_text()
    assert state(cluster, job) == "COMPLETED", said[-3000:]
    assert outputs(root, stage) == outputs(one_machine / "after", stage)
    assert re.search(says, said), said[-3000:]
    starts = re.findall(rf"^{stage}: +(\d+)/{TOTAL} \[", said, re.MULTILINE)
    assert starts.count("0") == 1, "the second attempt began at the first step"
